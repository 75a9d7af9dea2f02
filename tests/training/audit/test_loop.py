"""Audited trainings: to the same bytes after any interruption, stopped early, damaged, unknown; and the data they train on."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from wallprobe.errors import BusyError, CheckpointError, ConfigError, StoreError, UnknownNameError
from wallprobe.store.storage import sha256_file
from wallprobe.tasks import images
from wallprobe.training.audit import campaign, loop
from wallprobe.training.audit.job import make_job
from wallprobe.training.audit.quantities import Lens
from wallprobe.training.audit.record import judged
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.estimators.nets import Sizes, build_net
from wallprobe.training.wall.loop import own

QUICK = Lens(samples=32, nulls=4, nudge_samples=8, directions=2)


def job(method="dfa", arch="resmlp", **given):
    return make_job(arch, method, "synthetic", 42, **{"epochs": 3, "sizes": Sizes(width=16, depth=1), "lens": QUICK, **given})


class Cut(Exception):
    pass


@pytest.mark.parametrize(("method", "arch"), [("dfa", "resmlp"), ("frozen", "resmlp"), ("bp", "bncnn")])
def test_interrupted_after_any_epoch_it_ends_in_the_same_bytes(tmp_path, method, arch):
    whole = loop.audit(job(method, arch), tmp_path / "whole")

    def cut(told):
        raise Cut

    for _ in range(2):
        with pytest.raises(Cut):
            loop.audit(job(method, arch), tmp_path / "cut", on_progress=cut)
    again = loop.audit(job(method, arch), tmp_path / "cut")
    folders = [loop.folder_of(job(method, arch), tmp_path / name) for name in ("whole", "cut")]
    assert sha256_file(folders[0] / "weights.safetensors") == sha256_file(folders[1] / "weights.safetensors")
    assert whole.data.identical(again.data)
    assert whole.summary == again.summary
    assert not (folders[1] / loop.CHECKPOINT).exists()


def test_frozen_blocks_stay_and_the_rest_moves(tmp_path):
    loop.audit(job("frozen"), tmp_path)
    data = images.load_images("synthetic")
    net = loop.load_net(loop.folder_of(job("frozen"), tmp_path), job("frozen"), data)
    start = build_net("resmlp", data.shape, data.classes, 42, Sizes(width=16, depth=1))
    same = {name: torch.equal(value, start.state_dict()[name]) for name, value in net.state_dict().items()}
    assert same == {name: name.startswith("blocks.") for name in same}


def test_methods_of_a_seed_start_level_and_see_the_same_data(tmp_path):
    first, other = (loop.audit(job(method), tmp_path) for method in ("bp", "dfa"))
    for name in ("h_norm", "g_norm", "accuracy"):
        assert first.data[name].values[0, 0].tolist() == other.data[name].values[0, 0].tolist()
    assert first.data["h_norm"].values[0, -1, -1] != other.data["h_norm"].values[0, -1, -1]


def test_an_early_stop_saves_epochs_and_says_so(tmp_path):
    limits = Thresholds(growth_limit=0.5)  # fires at once
    found = loop.audit(job(epochs=6, stop="degenerate", thresholds=limits), tmp_path)
    assert found.data["epoch"].values[0, -1, 0] == 1.0
    assert found.summary["stopped_early"]
    assert found.summary["epochs_saved"] == 5
    assert "Stopped with 5 epochs saved" in found.summary["finding"]
    assert judged(found, limits).summary["stop_epoch"] == 1
    whole = loop.audit(job(epochs=6), tmp_path)
    told = judged(whole, limits).summary  # the same training to its end says what the stop would have cost
    assert (told["stop_epoch"], told["accuracy_at_stop"]) == (1, found.summary["accuracy"])
    assert judged(whole, Thresholds()).summary["stop_epoch"] is None


def test_a_loss_that_ceases_to_be_finite_ends_the_run_and_is_recorded(tmp_path):
    found = loop.audit(job("bp", lr=1e30), tmp_path)
    assert found.summary["diverged"]
    assert "ceased to be finite" in found.summary["finding"]


def test_the_wrong_run_under_a_name_a_damaged_checkpoint_and_a_busy_one(tmp_path):
    wanted = job()
    folder = loop.folder_of(wanted, tmp_path)
    folder.mkdir(parents=True)
    (folder / loop.CHECKPOINT).write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        loop.audit(wanted, tmp_path)
    loop.audit(wanted, tmp_path, force=True)
    (folder / "manifest.json").write_text('{"config": {}}')
    with pytest.raises(CheckpointError, match="holds another audit; use --force"):
        loop.audit(wanted, tmp_path)
    with own(folder), pytest.raises(BusyError):
        loop.audit(wanted, tmp_path)


def test_many_in_worker_processes_and_their_baselines(tmp_path, one_thread):
    jobs = campaign.with_baselines([job("dfa"), job("bp")])
    assert [one.method for one in jobs] == ["dfa", "bp", "frozen"]
    told = []
    assert campaign.run_all(jobs, tmp_path, workers=2, on_progress=told.append) == []
    found, damaged = campaign.stored(tmp_path)
    assert (sorted(one.method for one, _ in found), damaged) == (["bp", "dfa", "frozen"], [])
    assert {one.config()["method"] for one, _ in found} == {"bp", "dfa", "frozen"}
    assert {progress.epoch for progress in told} >= {3}
    alone = loop.audit(job("dfa"), tmp_path / "alone")
    (pooled,) = [result for one, result in found if one.method == "dfa"]
    assert alone.data.identical(pooled.data)
    judged = campaign.judge_with_baseline(job("dfa"), pooled, Thresholds(), tmp_path)
    frozen = next(result for one, result in found if one.method == "frozen")
    assert judged.summary["accuracy_minus_frozen"] == pytest.approx(judged.summary["accuracy"] - frozen.summary["accuracy"])
    assert (
        judged.summary["accuracy_minus_frozen_low"]
        <= judged.summary["accuracy_minus_frozen"]
        <= judged.summary["accuracy_minus_frozen_high"]
    )


def test_what_no_method_has_a_part_in_is_measured_once_and_changes_nothing(tmp_path, monkeypatch):
    jobs = [job("bp"), job("dfa"), job("fa"), replace(job("dfa"), seed=43)]
    alone = [loop.audit(one, tmp_path / "alone") for one in jobs]
    counted, found = [], loop.common
    monkeypatch.setattr(loop, "common", lambda *given: counted.append(given[-1]) or found(*given))
    assert campaign.run_all(jobs, tmp_path / "level", workers=1) == []
    assert counted == [42, 43]
    for one, result in zip(jobs, alone, strict=True):
        again = loop.finished(one, tmp_path / "level")
        assert again is not None
        assert result.data.identical(again.data)
        assert result.summary == again.summary


def test_the_campaign_starts_with_its_slowest_runs():
    jobs = campaign.campaign((42, 1337, 2024))
    assert (len(jobs), len({one.name for one in jobs})) == (48, 48)
    assert list(dict.fromkeys(one.arch for one in jobs)) == ["vit", "bncnn", "resmlp", "student"]
    assert [one.label for one in jobs[:4]] == ["vit bp @42", "vit bp @1337", "vit bp @2024", "vit fa @42"]


def test_jobs_that_are_none():
    with pytest.raises(UnknownNameError, match="no architecture named 'rnn'"):
        job(arch="rnn")
    with pytest.raises(UnknownNameError, match="no training method named 'hebb'"):
        job("hebb")
    with pytest.raises(UnknownNameError, match="no data named 'mnist'; there are: digits"):
        make_job("resmlp", "bp", "mnist", 1)
    with pytest.raises(ConfigError, match="ep does not settle on vit"):
        job("ep", arch="vit")
    assert job().name != job(lr=1e-3).name
    assert job().name == job(thresholds=Thresholds(inflation=5.0)).name  # nothing stops by it


def test_label_noise_redraws_its_share_and_leaves_the_test_part_alone():
    data = images.load_images("digits")
    noisy = data.noisy_labels(0.7, 1, 0)
    changed = float((noisy != data.train_y).double().mean())
    assert changed == pytest.approx(0.7 * 0.9, abs=0.04)
    assert not torch.equal(noisy, data.noisy_labels(0.7, 1, 1))
    assert torch.equal(noisy, data.noisy_labels(0.7, 1, 0))
    assert torch.equal(data.noisy_labels(0.0, 1, 0), data.train_y)
    with pytest.raises(ConfigError, match="label noise 2 is no share"):
        data.noisy_labels(2.0, 1)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), images.load_images("digits")
    raw = np.load(images.DIGITS)
    assert (raw["images"] == theirs.images).all()
    assert (raw["labels"] == theirs.target).all()
    assert (len(ours.train_x), len(ours.test_x)) == (1500, 297)
    assert float(ours.train_x.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(ours.train_x.std()) == pytest.approx(1.0, abs=1e-3)


def write_fashion(folder, samples=20):
    draws = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pictures = draws.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
        labels = (np.arange(samples) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


def test_fashion_mnist_is_read_from_idx_files(tmp_path, monkeypatch):
    write_fashion(tmp_path)
    monkeypatch.setenv("WALLPROBE_DATA", str(tmp_path))
    data = images.load_images("fashion_mnist")
    assert (data.shape, data.classes, len(data.train_x)) == ((1, 28, 28), 10, 20)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"t10k-images-idx3-ubyte\.gz is no sound idx file"):
        images.load_images("fashion_mnist")


def test_data_that_cannot_be_had_say_how_to_get_them(monkeypatch):
    import datasets

    def refuse(repository):
        raise ConnectionError(f"no network for {repository}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(images, "DEBIAN", images.Path("nowhere"))
    monkeypatch.delenv("WALLPROBE_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"data 'cifar10' cannot be had .*no network for uoft-cs/cifar10.*use --data digits"):
        images.load_images("cifar10")
    with pytest.raises(ConfigError, match="install Debian's dataset-fashion-mnist"):
        images.load_images("fashion_mnist")


def test_cifar_through_datasets_has_its_channels_first(monkeypatch):
    import datasets

    draws = np.random.default_rng(0)
    part = {"img": list(draws.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)), "label": [*range(10), 0, 1]}
    monkeypatch.setattr(datasets, "load_dataset", lambda repository: {"train": part, "test": part})
    data = images.load_images("cifar10")
    assert (data.shape, data.classes) == ((3, 32, 32), 10)
    raw = np.asarray(part["img"][3], dtype=np.float32)
    expected = (raw[5, 7, 2] - np.mean(part["img"])) / np.std(part["img"])
    assert float(data.train_x[3, 2, 5, 7]) == pytest.approx(float(expected), rel=1e-4)


def test_cifar_of_the_hubs_own_features_is_decoded(monkeypatch):
    """Encoded pictures and class labels, as the hub's data set has them, in a real DatasetDict."""
    import datasets

    draws = np.random.default_rng(1)
    pictures = draws.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    part = datasets.Dataset.from_dict({"img": list(pictures), "label": list(range(10))}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda repository: datasets.DatasetDict({"train": part, "test": part}))
    data = images.load_images("cifar10")
    assert (data.shape, data.classes, data.train_y.tolist()) == ((3, 32, 32), 10, list(range(10)))
    back = data.train_x * float(pictures.std()) + float(pictures.mean())
    torch.testing.assert_close(back.round().to(torch.uint8), torch.from_numpy(pictures).permute(0, 3, 1, 2), rtol=0, atol=0)


def test_runs_that_differ_in_more_than_the_seed_are_told_apart():
    from wallprobe.store.results import Result, dataset
    from wallprobe.training.audit.record import variants

    def run(seed, **settings):
        config = {"arch": "resmlp", "method": "dfa", "seed": seed, "penalty": 0.0, "sizes": {"terminal_ln": True}} | settings
        return Result("audit", dataset({}, {}), (), {"arch": "resmlp", "method": config["method"]}, {"config": config})

    usual = [run(42), run(7), run(42, penalty=0.01), run(42, sizes={"terminal_ln": False}), run(42, method="bp", penalty=0.5)]
    assert variants(usual) == ["", "", "penalty 0.01", "terminal_ln False", ""]
