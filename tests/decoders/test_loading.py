"""Decoders on disk: saved and loaded whole, and every damaged, foreign or dangerous file refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r2f_hf.decoders import GradientDecoder, MlpDecoder, SpectralDecoder, TikhonovDecoder, load_decoder
from r2f_hf.decoders.loading import SPECTRAL_FOLDER
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes


def sketch() -> LoraSketch:
    G = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    A, B = draw_probes(0, 0, "module", 12, 10, 4)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B)


@pytest.mark.parametrize("decoder", [SpectralDecoder(channels=4), TikhonovDecoder(0.2), MlpDecoder(12, 10, 4, 8)])
def test_a_saved_decoder_is_the_same_decoder(decoder: GradientDecoder, tmp_path: Path) -> None:
    decoder.save_pretrained(tmp_path / "decoder")
    loaded = load_decoder(str(tmp_path / "decoder"))
    assert type(loaded) is type(decoder)
    with torch.no_grad():
        mine, other = decoder.decode(sketch()), loaded.decode(sketch())
    assert torch.equal(mine.U, other.U) and torch.equal(mine.V, other.V)
    files = {file.name for file in (tmp_path / "decoder").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "decoder" / "README.md").read_text()
    assert "library_name: r2f-hf" in card and "2512.07374" in card and "without a record of its training" in card


def test_the_record_of_the_training_stays_with_the_decoder(tmp_path: Path) -> None:
    decoder = SpectralDecoder(channels=4)
    decoder.training_record = "On gradients of a proxy."
    decoder.save_pretrained(tmp_path / "first")
    load_decoder(str(tmp_path / "first")).save_pretrained(tmp_path / "second")
    assert "On gradients of a proxy." in (tmp_path / "second" / "README.md").read_text()


def test_a_configuration_that_was_edited_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"decoder": "SpectralDecoder", "channels": "many"}))
    with pytest.raises(ValueError, match=r"config.json of the decoder .* does not describe one"):
        load_decoder(str(folder))


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no folder outputs/decodr, and no decoder of that name on the Hub"):
        load_decoder("outputs/decodr")


def test_the_package_ships_a_trained_decoder_of_a_few_kilobytes() -> None:
    decoder = load_decoder("spectral")
    assert isinstance(decoder, SpectralDecoder) and not decoder.training
    assert sum(file.stat().st_size for file in SPECTRAL_FOLDER.iterdir()) < 10_000
    assert "Trained by r2f-hf" in decoder.training_record
    assert decoder.training_record in (SPECTRAL_FOLDER / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SpectralDecoder(channels=4).save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="are damaged, or those of another decoder"):
        load_decoder(str(folder))


def test_weights_of_another_width_are_refused(folder: Path) -> None:
    SpectralDecoder(channels=5).save_pretrained(folder.parent / "other")
    (folder.parent / "other" / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="are damaged, or those of another decoder"):
        load_decoder(str(folder))


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["net.0.weight"][0, 0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not finite: the file was edited or damaged"):
        load_decoder(str(folder))


def test_a_pickle_is_never_read(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only from safetensors; a pickle .* is refused"):
        load_decoder(str(folder))


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_folder_that_does_not_say_what_it_holds_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="does not say which decoder it is"):
        load_decoder(str(folder))


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"decoder": "SpectrlDecoder"}))
    with pytest.raises(ValueError, match="Did you mean 'SpectralDecoder'"):
        load_decoder(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no decoder"):
        load_decoder(str(folder))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Unknown decoder: 'spektral'. Did you mean 'spectral'"):
        load_decoder("spektral")
