"""A server process from the outside: the same cells as ``predict``, refusals, and a clean end."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib import error, request

import psutil
import pytest
import tifffile

from cellvision.cli import main
from cellvision.release import deploy as deploying
from cellvision.release.deploy import find_live
from cellvision.release.lock import hold
from cellvision.release.registry import ModelRegistry
from cellvision.serve.server import open_socket
from stain_net import build_graph, draw_cells, write_bundle

pytest.importorskip("uvicorn", reason='needs pip install "cellvision[serve]"')
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are other ones there")


@pytest.fixture
def field(tmp_path):
    image = draw_cells((150, 170), [(20, 20), (30, 70), (70, 30), (100, 120)], 12, {1, 3})
    tifffile.imwrite(tmp_path / "field.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    return tmp_path / "field.tif"


START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by all that a shell starts in the background
from cellvision.cli import main
sys.exit(main())
"""


@contextmanager
def serving(bundle, *options):
    """A server at work; its process and its address."""
    words = [sys.executable, "-c", START, "serve", str(bundle), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert " on http://127.0.0.1:" in line, process.stderr.read()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def post(url, content, query=""):
    try:
        with request.urlopen(request.Request(f"{url}/predict{query}", data=content), timeout=250) as reply:
            return reply.status, reply.read(), reply.headers
    except error.HTTPError as refused:
        return refused.code, refused.read(), refused.headers


def make_large(side=900):
    """An image of many cells, which takes a while."""
    centres = [(y, x) for y in range(20, side, 40) for x in range(20, side, 40)]
    return draw_cells((side, side), centres, 12)


def write_bytes(path, image):
    tifffile.imwrite(path, image, photometric="minisblack", metadata={"axes": "CYX"})
    return path.read_bytes()


def test_labels_are_those_of_the_command(stain_bundle, field, tmp_path, capsys):
    assert main(["predict", "--bundle", str(stain_bundle), str(field), "--out", str(tmp_path / "out")]) == 0
    with serving(stain_bundle) as (_, url), ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: post(url, field.read_bytes(), "?answer=labels"), range(6)))
    assert [status for status, _, _ in replies] == [200] * 6
    assert {content for _, content, _ in replies} == {(tmp_path / "out" / "field_labels.tif").read_bytes()}


def test_a_server_that_is_told_to_end_finishes_what_it_has_begun(stain_bundle, tmp_path):
    content = write_bytes(tmp_path / "large.tif", make_large())
    with serving(stain_bundle, "--memory-mib", "200") as (process, url), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, url, content) for _ in range(2)]
        wait_for(lambda: ask(url, "/health")["taken"] == 2)
        process.send_signal(signal.SIGTERM)
        answers = [json.loads(each.result()[1]) for each in waiting]
        assert process.wait(200) == 0
        assert process.stderr.read() == ""
    assert [answer["count"] for answer in answers] == [22 * 22] * 2


def test_ctrl_c_is_an_interruption(stain_bundle):
    with serving(stain_bundle) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 130
        assert process.stderr.read() == "cellvision: interrupted\n"


def test_who_comes_when_all_places_are_taken_is_told_when_to_come_back(stain_bundle, field, tmp_path):
    content = write_bytes(tmp_path / "large.tif", make_large())
    with serving(stain_bundle, "--queue", "1") as (_, url), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, url, content) for _ in range(2)]
        wait_for(lambda: ask(url, "/health")["taken"] == 2)
        status, body, headers = post(url, field.read_bytes())
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"].startswith("1 images at work and 1 waiting, which is all this server takes on")
        assert [each.result()[0] for each in waiting] == [200, 200]
        assert post(url, field.read_bytes())[0] == 200


def test_who_sends_too_much_or_too_slowly_gets_a_sentence(stain_bundle):
    with serving(stain_bundle, "--max-mib", "1", "--upload-seconds", "1") as (_, url):
        status, body, _ = post(url, bytes(5 * 2**20))
        assert (status, json.loads(body)["error"][:27]) == (413, "an upload of too many bytes")
        slow = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        slow.putrequest("POST", "/predict")
        slow.putheader("content-length", "100")
        slow.endheaders(b"II*\0")
        time.sleep(1.5)
        with suppress(OSError):
            slow.send(bytes(96))
        reply = slow.getresponse()
        assert reply.status == 408
        assert json.loads(reply.read())["error"].startswith("an upload of more than 1 s; need one that ends in time")
        slow.close()
        broken = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        broken.putrequest("POST", "/predict")
        broken.putheader("content-length", "100")
        broken.endheaders(b"II*\0")
        broken.close()
        wait_for(lambda: ask(url, "/health")["taken"] == 0)


def test_what_keeps_a_server_from_starting_is_one_line(stain_bundle, tmp_path, capsys):
    with open_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(stain_bundle), "--port", port]) == 2
    assert capsys.readouterr().err.startswith(f"cellvision: cannot listen on 127.0.0.1, port {port} (")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "has no manifest.json" in capsys.readouterr().err
    assert main(["serve", str(stain_bundle), "--max-mib", "0"]) == 2
    assert "max_mib=0; need a whole number from 1 up" in capsys.readouterr().err


def ask(url, path):
    with request.urlopen(f"{url}{path}", timeout=60) as reply:
        return json.loads(reply.read())


def wait_for(is_so, *, seconds=200):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


class Shop:
    """A registry with verbs as on the command line."""

    def __init__(self, folder, field):
        self.folder, self.models, self.field = folder, folder / "models", field
        with open_socket("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]

    def register(self, name, f1, *, scale=1.0):
        """A bundle of a graph that multiplies counts, with such a score; exit status."""
        bundle = write_bundle(self.folder / name, build_graph(scale=scale))
        graph = json.loads((bundle / "manifest.json").read_text())["graphs"][0]["sha256"]
        scores = {"graph_sha256": graph, "data": {"fingerprint": "f", "images": 3}, "scores": {"cell/f1": f1}}
        (self.folder / f"{name}.json").write_text(json.dumps(scores))
        options = ["--name", "cells", "--scores", self.folder / f"{name}.json", "--metric", "cell/f1"]
        return self.run("register", bundle, *options, "--at-least", "0.5")

    def deploy(self, *options):
        return self.run("deploy", "cells", "--port", self.port, "--threads", "1", "--sample", self.field, *options)

    def run(self, verb, *words):
        return main([verb, *map(str, words), "--models", str(self.models)])

    @property
    def live(self):
        return find_live(ModelRegistry(self.models), "cells")

    @property
    def production(self):
        found = ModelRegistry(self.models).find_production("cells")
        return found and found.version

    def list_servers(self):
        """Servers of this registry that are at work."""
        with_path = [
            p for p in psutil.process_iter(["cmdline"]) if str(self.models) in " ".join(p.info["cmdline"] or [])
        ]
        return [p.pid for p in with_path if p.status() != psutil.STATUS_ZOMBIE and p.pid != os.getpid()]


@pytest.fixture
def shop(tmp_path, field):
    found = Shop(tmp_path, field)
    yield found
    if found.models.exists():
        found.run("deploy", "cells", "--stop")
        assert found.list_servers() == []


def test_a_better_version_takes_over_and_a_worse_one_does_not(shop, capsys):
    assert shop.register("one", 0.7) == 0
    assert shop.deploy() == 0
    first = shop.live
    assert (first.version, first.port, shop.production) == (1, shop.port, 1)
    assert post(first.url, shop.field.read_bytes())[0] == 200
    capsys.readouterr()
    assert shop.register("worse", 0.6, scale=0.9) == 2
    assert "cell/f1 0.6, and cells version 1, which is in production, has 0.7; need at" in capsys.readouterr().err
    assert shop.register("better", 0.8, scale=1.1) == 0
    assert shop.deploy() == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["registered", "starting", "testing", "live", "ended", "cells"]
    assert printed[2] == "testing   4 cells in field.tif"
    second = shop.live
    assert (second.version, second.port, shop.production) == (2, shop.port + 1, 2)
    assert ask(second.url, "/info")["graphs"][0]["sha256"] == ModelRegistry(shop.models).get("cells", 2).tags["graphs"]
    assert first.process.find() is None
    assert len(shop.list_servers()) == 1
    assert shop.run("models") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[-1] == f"cells version 2 answers on {second.url}"
    assert [line.split()[-1] for line in listed if line.split()[:1] == ["cells"]][:2] == ["0.700", "production"]
    assert shop.deploy("--rollback", "--stop-after") == 0
    assert (shop.live, shop.production) == (None, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "cells version 1 is in production; its server was stopped"


def test_whatever_goes_wrong_the_old_server_stays(shop, capsys):
    """A bundle that finds no cells, a port that another holds, an interruption, a bundle that was altered."""
    assert shop.register("one", 0.7) == 0
    assert shop.register("blind", 0.9, scale=1e-3) == 0
    assert shop.deploy("--version", "1") == 0
    before = shop.live
    capsys.readouterr()

    def fail(*options, said, status=2):
        assert shop.deploy(*options) == status
        assert said in capsys.readouterr().err
        assert (shop.live, shop.production, len(shop.list_servers())) == (before, 1, 1)

    fail(said="cells version 2 finds no cell in field.tif; need at least one; try: samples with cells")
    with open_socket("127.0.0.1", shop.port + 1):
        fail(said=f"the new server ended at once: cannot listen on 127.0.0.1, port {shop.port + 1}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploying, "_switch", interrupt)
        fail("--version", "1", said="interrupted", status=130)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploying, "_switch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as left:
            shop.deploy("--version", "1")
    assert (left.value.code, shop.live, shop.list_servers()) == (143, before, [before.pid])
    (shop.models / "cells" / "2" / "bundle" / "model.onnx").write_bytes(b"x")
    fail(said="model.onnx changed since it was registered; need an unaltered bundle")
    assert post(before.url, shop.field.read_bytes())[0] == 200


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_pointers_switch_together_or_not_at_all(shop, monkeypatch):
    assert shop.register("one", 0.7) == 0
    assert shop.register("two", 0.8, scale=1.1) == 0
    registry, live = ModelRegistry(shop.models), {"name": "cells", "url": "u", "port": 1, "pid": 1, "started": 0.0}
    deploying._switch(registry, deploying.Deployment(version=1, **live))
    kept = {path.name: path.read_bytes() for path in (shop.models / "cells").glob("*.json")}
    monkeypatch.setattr(deploying, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        deploying._switch(registry, deploying.Deployment(version=2, **live))
    assert {path.name: path.read_bytes() for path in (shop.models / "cells").glob("*.json")} == kept
    assert shop.production == 1


@pytest.mark.parametrize("way_out", [["--stop"], ["--stop-after"]])
def test_a_killed_deployment_leaves_a_server_that_the_next_one_ends(shop, way_out):
    assert shop.register("one", 0.7) == 0
    words = ["deploy", "cells", "--models", shop.models, "--port", shop.port, "--sample", shop.field]
    note = shop.models / "cells" / "starting.json"
    with subprocess.Popen([sys.executable, "-m", "cellvision", *map(str, words)]) as run:
        wait_for(note.is_file)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    (left,) = shop.list_servers()
    assert left == json.loads(note.read_text())["pid"]
    assert shop.production is None
    assert shop.deploy(*way_out) == 0
    assert shop.list_servers() == []
    assert not note.exists()


def test_a_server_does_not_hold_the_lock_of_the_pipeline_that_started_it(shop, tmp_path):
    shop.register("first", 0.7)
    words = ["deploy", "cells", "--models", shop.models, "--port", shop.port, "--sample", shop.field]
    with hold(tmp_path / "lock", work="work there") as lock:
        command = [sys.executable, "-m", "cellvision", *map(str, words)]
        assert subprocess.run(command, pass_fds=lock, capture_output=True, timeout=250).returncode == 0
    assert shop.live is not None
    with hold(tmp_path / "lock", work="work there"):
        pass


def test_a_free_port_is_found_by_itself(shop):
    assert shop.register("one", 0.7) == 0
    words = ["cells", "--threads", "1", "--sample", shop.field]
    assert shop.run("deploy", *words, "--port", "0") == 0
    first = shop.live
    assert first.port > 0
    assert ask(first.url, "/health")["process"] == first.pid
    assert shop.run("deploy", *words, "--port", "0") == 0
    assert shop.live.port != first.port


def test_without_a_port_those_of_the_live_server_take_turns(shop):
    words = ["deploy", "cells", "--threads", "1", "--sample", shop.field]
    assert shop.register("one", 0.7) == 0
    assert shop.deploy() == 0
    first = shop.live.port
    used = []
    for _ in range(2):
        assert shop.run(*words) == 0
        used.append(shop.live.port)
    assert used == [first + 1, first]
    assert shop.deploy("--stop") == 0


def test_the_server_of_somebody_else_is_left_with_a_sentence(shop, capsys, monkeypatch):
    assert shop.register("one", 0.7) == 0
    assert shop.deploy() == 0
    old = shop.live
    refuse = lambda self: (_ for _ in ()).throw(psutil.AccessDenied(self.pid))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "terminate", refuse)
        capsys.readouterr()
        assert shop.deploy("--stop") == 2
        assert f"process {old.pid}, which belongs to " in capsys.readouterr().err
        assert shop.live == old
        assert shop.deploy() == 0
        assert f"left      the server at {old.url}, process {old.pid}, which" in capsys.readouterr().out
    assert shop.live.pid != old.pid
    assert old.process.end(seconds=20)
    assert shop.deploy("--stop") == 0


def test_what_cannot_be_deployed_is_one_sentence(shop, capsys):
    assert shop.register("one", 0.7) == 0
    capsys.readouterr()
    for options, said in (
        (["--threads", "0"], "--threads 0; need a whole number from 1 to 1024; try: leave --threads out"),
        (["--port", "70000"], "--port 70000; need a whole number from 0 to 65534; try: leave --port out"),
        (["--version", "7"], "cells version 7; need one of 1; try: 1"),
        (["--rollback"], "cells had no version in production before; need one to go back to; try: "),
        (["--sample", shop.folder / "none.tif"], "none.tif, which is no file; need an image; try: check the path"),
    ):
        assert shop.deploy(*options) == 2
        assert said in capsys.readouterr().err
    assert shop.run("deploy", "cells", "--stop") == 0
    assert capsys.readouterr().out == "no server of cells is at work\n"
    assert shop.run("deploy", "sells") == 2
    assert "unknown model 'sells'; need one of: cells; try: 'cells'" in capsys.readouterr().err


def test_tags_and_numbers_reach_the_registry(shop, stain_bundle, capsys):
    out = shop.folder / "registered.json"
    words = [stain_bundle, "--name", "cells", "--tag", "plate=A1", "--json", out]
    assert shop.run("register", *words) == 0
    assert capsys.readouterr().out == "registered cells version 1, without a gate\n"
    assert json.loads(out.read_text())["version"] == 1
    assert ModelRegistry(shop.models).get("cells").tags["plate"] == "A1"
    with pytest.raises(SystemExit):
        shop.run("register", stain_bundle, "--name", "cells", "--tag", "plate")
    assert "'plate' is no KEY=VALUE like plate=A1" in capsys.readouterr().err
