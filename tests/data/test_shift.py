import pytest
import torch

from mlcomp.data import random_shift


def test_each_image_is_a_shift_of_itself():
    images = torch.rand(40, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    shifted = random_shift(images, torch.Generator().manual_seed(1), pixels=2)
    seen = set()
    for image, result in zip(images, shifted, strict=True):
        fits = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                moved = torch.zeros_like(image)
                for i in range(6):
                    for j in range(5):
                        if 0 <= i - down < 6 and 0 <= j - right < 5:
                            moved[:, i, j] = image[:, i - down, j - right]
                if torch.equal(moved, result):
                    fits.append((down, right))
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 10 and {d for d, _ in seen} == {r for _, r in seen} == {-2, -1, 0, 1, 2}


def test_no_pixels_no_change_and_the_seed_decides():
    images = torch.rand(8, 1, 9, 9)
    assert torch.equal(random_shift(images, torch.Generator(), pixels=0), images)
    a, b = (random_shift(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_bad_pixels(as_user):
    with pytest.raises(ValueError, match="pixels"):
        random_shift(torch.rand(1, 1, 3, 3), torch.Generator(), pixels=-1)
