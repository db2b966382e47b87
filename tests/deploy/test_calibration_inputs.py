import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mlcomp.data import python_reference
from mlcomp.deploy import OpenedModel, open_model
from mlcomp.deploy.calibration_inputs import draw_inputs
from mlcomp.deploy.image_files import read_picture
from mlcomp.deploy.opened_model import ImageInput
from tests.deploy import tiny

IMAGES = ImageInput(3, 8, 10, (0.5, 0.4, 0.3), (0.25, 0.5, 1.0))


def draw(opened, data=None, held_out=None, samples=4, tokens=None, seed=0):
    return draw_inputs(opened, data, held_out, samples=samples, tokens=tokens, seed=seed)


@pytest.fixture(scope="module")
def byte_lm():
    return open_model("byte_lm_16")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.TEXT)
    return path


def test_runs_of_the_reference(byte_lm):
    inputs = draw(byte_lm, samples=6)
    assert [tuple(batch.shape) for batch in inputs.calibration] == [(4, 256), (2, 256)]
    assert sum(map(len, inputs.held_out)) == 8 and inputs.valid is None
    source = python_reference("calibration").encode()
    for run in torch.cat(list(inputs.calibration)):
        assert source.find(bytes(run.tolist())) % 256 == 0  # a run of the text, and no run overlaps another
    first = python_reference("held_out").encode()[: 8 * 256]
    assert torch.cat(list(inputs.held_out)).flatten().tolist() == list(first)


def test_the_seed_moves_the_draw_and_not_what_is_measured_on(byte_lm, text):
    a, b, c = (draw(byte_lm, text, tokens=64, seed=seed) for seed in (0, 0, 1))
    same = [torch.equal(x.calibration[0], a.calibration[0]) for x in (b, c)]
    assert same == [True, False]
    assert all(torch.equal(x, y) for x, y in zip(a.held_out, c.held_out, strict=True))


def test_the_end_of_a_text_is_held_out(byte_lm, text):
    inputs = draw(byte_lm, text, tokens=64, samples=8)
    data = text.read_bytes()
    runs = len(data) // 64
    drawn = {bytes(run.tolist()) for run in torch.cat(list(inputs.calibration))}
    kept = [bytes(run.tolist()) for run in torch.cat(list(inputs.held_out))]
    assert kept == [data[64 * i : 64 * i + 64] for i in range(runs - 8, runs)]
    assert len(drawn) == 8 and not drawn & set(kept)
    assert inputs.told == "8 runs of 64 tokens of text.txt, drawn by seed 0; held out: 8 of its end"


def test_another_text_is_held_out_from_its_start(byte_lm, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("x" * 1000)
    inputs = draw(byte_lm, text, other, tokens=100)
    assert torch.equal(torch.cat(list(inputs.held_out)), torch.full((8, 100), ord("x")))


def test_paragraphs_are_padded_and_cut(text, tmp_path):
    opened = open_model(tiny.saved(tiny.bert(), tmp_path / "bert"))
    inputs = draw(opened, text, samples=5, tokens=20)
    (batch,) = inputs.calibration
    assert inputs.valid == "attention_mask" and batch["input_ids"].shape == (5, 20)
    start = opened.tokenizer("Paragraph", add_special_tokens=False)["input_ids"]
    assert batch["input_ids"][:, : len(start) + 1].tolist() == [[1, *start]] * 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 0}, "samples must be a whole number"),
        ({"tokens": 1}, "tokens must be a whole number from 2 to 256"),
        ({"tokens": 257}, "tokens must be a whole number from 2 to 256"),
        ({"samples": 10**6}, "fewer than the 1000000 wanted: take fewer samples"),
    ],
)
def test_numbers_that_do_not_fit(byte_lm, options, told):
    with pytest.raises(ValueError, match=told):
        draw(byte_lm, **options)


def test_data_that_is_not_there_or_no_text(byte_lm, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no text file"):
        draw(byte_lm, tmp_path / "none.txt")
    (tmp_path / "raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        draw(byte_lm, tmp_path / "raw")
    with pytest.raises(ValueError, match="is for models of images"):
        draw(byte_lm, "noise")


def pictures(folder, count=12):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (10 + i, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def images(kind="image classifier", facts=IMAGES):
    return OpenedModel("x", torch.nn.Identity(), None, kind, facts)


def test_a_folder_of_pictures(tmp_path):
    inputs = draw(images(), pictures(tmp_path / "p"), samples=9)
    (batch,), (rest,) = inputs.calibration, inputs.held_out
    assert batch.shape == (9, 3, 8, 8) and rest.shape == (3, 3, 8, 8)
    assert torch.equal(rest[2], read_picture(tmp_path / "p" / "11.png", IMAGES))


def test_a_picture_is_scaled_cut_and_normalized(tmp_path):
    # Of one colour, so that scaling changes nothing: each channel is (c/255 − mean)/std.
    Image.new("RGB", (30, 20), (255, 0, 51)).save(tmp_path / "a.png")
    expected = torch.tensor([(1 - 0.5) / 0.25, (0 - 0.4) / 0.5, (0.2 - 0.3) / 1.0])
    torch.testing.assert_close(read_picture(tmp_path / "a.png", IMAGES), expected[:, None, None].expand(3, 8, 8))
    # The middle of what was scaled to 10 pixels on the shorter side: its own size here, so pixels stay.
    pixels = np.arange(10 * 14, dtype=np.uint8).reshape(10, 14)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    plain = ImageInput(1, 8, 10, (0.0,), (1.0,))
    found = read_picture(tmp_path / "b.png", plain) * 255
    torch.testing.assert_close(found[0], torch.from_numpy(pixels[1:9, 3:11]).float())


def test_a_picture_smaller_than_the_input_is_enlarged(tmp_path):
    Image.new("RGB", (3, 90)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", IMAGES).shape == (3, 8, 8)


def test_tensors_from_files(tmp_path):
    x = torch.randn(20, 3, 8, 8)
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({"x": x}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.safetensors"):
        inputs = draw(images(), tmp_path / name)
        assert torch.equal(torch.cat(list(inputs.held_out)), x[15:])


def test_files_that_hold_no_inputs(tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros((4, 5)))
    np.save(tmp_path / "bytes.npy", np.zeros((4, 3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    (tmp_path / "x.txt").write_text("no picture")
    told = {"empty": "holds no pictures", "flat.npy": r"must hold \(samples, 3, 8, 8\), got \(4, 5\)"}
    told |= {"bytes.npy": "holds torch.uint8", "pickled.npy": "cannot be read", "two.safetensors": "2 tensors"}
    for name, words in (told | {"x.txt": "must be an .npy or"}).items():
        with pytest.raises(ValueError, match=words):
            draw(images(), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        draw(images(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r'this model needs images: data \(--data\).*"noise"'):
        draw(images())


def test_noise_is_told_as_noise():
    inputs = draw(images(), "noise", samples=100)
    assert sum(map(len, inputs.calibration)) == 100 and "noise" in inputs.told
    x = torch.cat(list(inputs.calibration))
    assert abs(float(x.mean())) < 5 / math.sqrt(x.numel())  # five standard deviations


def test_batches_of_ones_own():
    batches = [torch.ones(2, 3), torch.ones(2, 3)]
    inputs = draw(images("network", None), batches)
    assert len(inputs.calibration) == 2 and inputs.held_out is None and inputs.measured is inputs.calibration
    assert draw(images(), iter(batches), batches[:1]).held_out == batches[:1]
    with pytest.raises(TypeError, match="got one tensor"):
        draw(images(), torch.ones(4, 3, 8, 8))
    for data, held_out in ((None, None), ("text.txt", None), (None, batches)):
        with pytest.raises(ValueError, match="pass batches of its own inputs"):
            draw(images("network", None), data, held_out)
