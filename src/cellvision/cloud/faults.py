"""What goes wrong between here and Azure, each in one sentence with what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cellvision.cloud.options import KEY, VARIABLES
from cellvision.errors import CellvisionError, explain

ROLE = "AzureML Data Scientist"
DRY_RUN = f", or {KEY}.dry_run=true to see the job without one"


class CloudError(CellvisionError):
    """Azure refused what was asked, or could not be reached."""


@contextlib.contextmanager
def explained(doing: str, *, otherwise: str = DRY_RUN) -> Iterator[None]:
    """Turn errors of Azure's SDK and of the network into CloudError.

    Args:
        doing: what was tried, such as "submitting cv-unet-0123".
        otherwise: what can be done without a workspace or a credential; "" where there is nothing.
    """
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError
    from requests.exceptions import RequestException

    try:
        yield
    except (AzureError, MlException, RequestException, ConnectionError, TimeoutError) as error:
        raise CloudError(explain_fault(error, doing, otherwise)) from error


def explain_fault(error: BaseException, doing: str, otherwise: str = DRY_RUN) -> str:
    """One sentence for an error of ``azure.core``, ``azure.ai.ml`` or ``requests``: what it was, and what helps."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if explained := _explain_status(one, doing, otherwise):
            return explained
    text = find_first_line(error)
    if "does not seem to contain" in text:  # the page of advice has no more to say
        return explain_config(text)
    if "config.json" in text:
        got, need = f"no workspace for {doing}: none is named and no config.json was found", "one"
        names = f"{', '.join(VARIABLES.values())} in the environment, or config.json from the portal"
        return explain(got=got, need=need, hint=f"{names}{otherwise}")
    return explain(got=f"{doing} failed ({text})", need="what Azure takes", hint="docs/azure.md")


def explain_config(why: str) -> str:
    """One sentence for a file of the workspace that names none."""
    need = "that of the portal, with subscription_id, resource_group and workspace_name"
    got, hint = f"a config.json here or further up that cannot be read ({why})", "download it again, or remove it"
    return explain(got=got, need=need, hint=hint)


def _explain_status(error: BaseException, doing: str, otherwise: str) -> str | None:
    """The sentence for an answer of a service, or for none; None where the error is neither."""
    kind, status, text = type(error).__name__, getattr(error, "status_code", None), find_first_line(error)
    if status == 401 or kind in ("ClientAuthenticationError", "CredentialUnavailableError"):
        got, need = f"no valid Azure credential for {doing}", "one of the workspace's directory"
        hint = "az login, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET in the environment"
        return explain(got=got, need=need, hint=f"{hint}{otherwise}")
    if status == 403:
        got = f"Azure forbids {doing} ({text})"
        need = f"the role {ROLE!r} on the workspace, and 'Storage Blob Data Contributor' on its storage"
        return explain(got=got, need=need, hint=f"az role assignment create --assignee YOU --role '{ROLE}' --scope ...")
    if status == 404:
        got, need = f"Azure does not know what {doing} names ({text})", "names that exist"
        return explain(got=got, need=need, hint="az ml workspace list, az ml compute list, az ml data list")
    if status == 409:
        got, need = f"{doing} clashes with what Azure has already ({text})", "a moment in which nobody else writes it"
        return explain(got=got, need=need, hint="the same command again, which goes on where this one ended")
    if isinstance(status, int) and 400 <= status < 500:
        got = f"Azure refuses {doing} with {status} ({text})"
        return explain(got=got, need="what it takes", hint="what it says in brackets")
    if isinstance(status, int) or kind.startswith(("ServiceRe", "ConnectionE", "IncompleteRead", "HttpResponseError")):
        got, need = f"the connection to Azure broke in {doing} ({text})", "a network that reaches it"
        return explain(got=got, need=need, hint="the same command again, which goes on where this one ended")
    return None


def find_first_line(error: BaseException) -> str:
    """What an error says first, without its page of advice; at most 300 characters."""
    lines = [line.strip().rstrip(".") for line in str(getattr(error, "message", None) or error).splitlines()]
    # The SDK writes some of its errors as a page, of which the lines marked (x) say what it is, or as JSON.
    marked = [line.removeprefix("(x) ") for line in lines if line.startswith("(x) ")]
    marked += [line.removeprefix('"message": ') for line in lines if line.startswith('"message": ')]
    return next((line for line in [*marked, *lines] if line), type(error).__name__)[:300]
