"""What a teacher said is kept by the bytes of the image, and counted."""

import torch

from cellvision.compression.distill.teacher_cache import TeacherCache


class Asked:
    """A teacher that counts what it is asked."""

    def __init__(self):
        self.images = 0

    def __call__(self, images, sizes):
        self.images += len(images)
        area = [height * width for height, width in sizes] if sizes else [0] * len(images)
        return {"double": images * 2, "area": torch.tensor(area)}


IMAGES = torch.rand(6, 1, 8, 8)


def test_known_images_are_not_asked_again():
    cache, ask = TeacherCache(mib=1), Asked()
    cache.look(IMAGES[:2], None, ask)
    found = cache.look(IMAGES[[3, 1, 0, 2]], None, ask)
    assert torch.equal(found["double"], IMAGES[[3, 1, 0, 2]] * 2)
    assert ask.images == 4
    assert (cache.hits, cache.misses) == (2, 4)
    again = cache.look(IMAGES[:4], None, ask)
    assert torch.equal(again["double"], IMAGES[:4] * 2)
    assert ask.images == 4
    assert cache.end_epoch() == "distill: 6 of 10 images were in the teacher's cache (0.0 MiB)"
    assert (cache.hits, cache.misses) == (0, 0)


def test_another_size_or_another_count_is_another_image():
    cache, ask = TeacherCache(mib=1), Asked()
    cache.look(IMAGES[:1], ((8, 8),), ask)
    assert cache.look(IMAGES[:1], ((8, 7),), ask)["area"] == 56
    changed = IMAGES[:1].clone()
    changed[0, 0, 0, 0] += 1e-6
    cache.look(changed, ((8, 8),), ask)
    assert (cache.hits, cache.misses) == (0, 3)
    assert cache.look(IMAGES[:1], ((8, 8),), ask)["area"] == 64
    assert cache.hits == 1


def test_no_more_is_kept_than_there_is_room_for():
    each = 8 * 8 * 4 + 8
    cache, ask = TeacherCache(mib=2.5 * each / 2**20), Asked()
    for _ in range(3):
        found = cache.look(IMAGES, None, ask)
        assert torch.equal(found["double"], IMAGES * 2)
    assert (cache.hits, cache.misses) == (4, 14)  # the first two of six stay


def test_a_cache_that_never_hits_gives_itself_up():
    cache, ask = TeacherCache(mib=1), Asked()
    for epoch in range(2):
        cache.look(IMAGES[2 * epoch : 2 * epoch + 2], None, ask)
        line = cache.end_epoch()
        assert cache.is_given_up == (epoch == 1)
    assert "0 of 2 images" in line
    assert "nothing is kept any more (random crops or augmentation)" in line
    cache.look(IMAGES[:2], None, ask)
    assert (cache.hits, cache.misses) == (0, 0)
    assert ask.images == 6


def test_what_is_kept_does_not_change_with_what_was_given():
    cache, ask = TeacherCache(mib=1), Asked()
    cache.look(IMAGES[:1], None, ask)["double"].zero_()
    assert cache.look(IMAGES[:1], None, ask)["double"].any()
