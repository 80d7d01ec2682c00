"""The table of public checkpoints, its page in docs/, names and folders; nothing is downloaded."""

import dataclasses
import hashlib
import pathlib
import re

import pytest

from jaxseg import zoo
from jaxseg.checkpoints_table import CHECKPOINTS
from jaxseg.errors import UserError
from jaxseg.tools import download

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "checkpoints.md"
MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("entry", CHECKPOINTS, ids=lambda entry: entry.name)
def test_every_entry_is_well_formed(entry):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", entry.name)
    assert re.fullmatch(r"https://[a-z0-9.]+(/[\w.+-]+)+\.(pth|npz)", entry.address)
    assert entry.what and entry.licence
    assert entry.size is None or 10**7 < entry.size < 10**10
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{8,64}", entry.sha256)


def test_names_and_addresses_are_unique():
    for field in ("name", "address"):
        values = [getattr(entry, field) for entry in CHECKPOINTS]
        assert len(set(values)) == len(values)


# Copied from the pages that docs/checkpoints.md names, not put together from parts.
STATED = {
    "augreg-vitb-384": "https://storage.googleapis.com/vit_models/augreg/B_16-i21k-300ep-lr_0.001-"
    "aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384.npz",
    "augreg-vitl-384": "https://storage.googleapis.com/vit_models/augreg/L_16-i21k-300ep-lr_0.001-"
    "aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384.npz",
    "augreg-vitti-224": "https://storage.googleapis.com/vit_models/augreg/Ti_16-i21k-300ep-lr_0.001"
    "-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz",
    "augreg-vits-384": "https://storage.googleapis.com/vit_models/augreg/S_16-i21k-300ep-lr_0.001-"
    "aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz",
    "setr-naive-vitl-ade20k": f"{MMSEG}/setr/setr_naive_512x512_160k_b16_ade20k/"
    "setr_naive_512x512_160k_b16_ade20k_20210619_191258-061f24f5.pth",
    "setr-pup-vitl-cityscapes": f"{MMSEG}/setr/setr_pup_vit-large_8x1_768x768_80k_cityscapes/"
    "setr_pup_vit-large_8x1_768x768_80k_cityscapes_20211122_155115-f6f37b8f.pth",
    "mmseg-vitb-384": f"{MMSEG}/pretrain/segmenter/vit_base_p16_384_20220308-96dfe169.pth",
    "mmseg-segmenter-vitti-ade20k": f"{MMSEG}/segmenter/segmenter_vit-t_mask_8x1_512x512_160k_"
    "ade20k/segmenter_vit-t_mask_8x1_512x512_160k_ade20k_20220105_151706-ffcf7509.pth",
    "deit-vits-224": "https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
}


@pytest.mark.parametrize("name", STATED)
def test_addresses_are_those_that_upstream_states(name):
    assert zoo.find(name).address == STATED[name]


def test_digests_come_from_names():
    assert zoo.find("setr-naive-vitl-ade20k").sha256 == "061f24f5"
    for entry in CHECKPOINTS:
        named = re.search(r"-([0-9a-f]{8})\.pth$", entry.address)
        assert entry.sha256 == (named[1] if named else None)


def test_the_page_has_the_table():
    page = DOCS.read_text()
    assert zoo.table() in page, "print(zoo.table()) into docs/checkpoints.md"
    hosts = {entry.address.split("/")[2] for entry in CHECKPOINTS}
    assert [host for host in hosts if host not in page] == []


def test_names_that_resemble_are_offered():
    with pytest.raises(UserError, match="did you mean setr-naive-vitl-ade20k"):
        zoo.find("setr-naive-vitl-ade2k")
    with pytest.raises(UserError, match="xyz: no such checkpoint; `python -m jaxseg.tools.downl"):
        zoo.find("xyz")


def test_the_cache_folder(cache, monkeypatch):
    entry = zoo.find("segmenter-vits-ade20k")
    path = cache / "checkpoints" / "segmenter-vits-ade20k" / "checkpoint.pth"
    assert zoo.path_of(entry) == path
    monkeypatch.setenv("JAXSEG_CACHE", "~/elsewhere")
    assert zoo.cache_folder() == pathlib.Path.home() / "elsewhere"
    monkeypatch.setenv("JAXSEG_CACHE", "")
    assert zoo.cache_folder() == pathlib.Path.home() / ".cache" / "jaxseg"


def test_what_is_asked_for_is_what_the_table_says(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "fetch", lambda *args, **options: asked.append((args, options)))
    zoo.get("segvit-vitb-ade20k")
    entry = zoo.find("segvit-vitb-ade20k")
    label = "segvit-vitb-ade20k (SegViT ViT-B, ADE20K 512, 51.3; licence adelaidet-non-commercial)"
    options = {"sha256": None, "size": 1_310_000_000}
    assert asked == [((entry.address, zoo.path_of(entry), label), options)]


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(cache, monkeypatch, capsys):
    path = zoo.path_of(zoo.find("setr-naive-vitl-ade20k"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another file")
    with pytest.raises(UserError, match="should begin 061f24f5; delete it"):
        zoo.get("setr-naive-vitl-ade20k")
    digest = hashlib.sha256(b"another file").hexdigest()
    entries = [dataclasses.replace(entry, sha256=digest[:8]) for entry in CHECKPOINTS]
    monkeypatch.setattr(zoo, "CHECKPOINTS", entries)
    download.main(["setr-naive-vitl-ade20k"])
    assert capsys.readouterr().out == f"{path}  sha256 {digest}\n"


def test_the_command_lists_and_checks_all_names_first(monkeypatch, capsys):
    download.main([])
    assert capsys.readouterr().out == zoo.table() + "\n"
    monkeypatch.setattr(zoo, "fetch", lambda *args, **options: pytest.fail("downloads"))
    with pytest.raises(UserError, match="augreg-vitb: no such checkpoint; did you mean augreg-"):
        download.main(["augreg-vitb-384", "augreg-vitb"])
