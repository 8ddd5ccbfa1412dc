"""tpu_scripts/ run against a fake gcloud: what is done twice, after a preemption, to foreigners."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator

import pytest
from tpu_cloud import Cloud, make_cloud, wait_for

pytestmark = pytest.mark.slow  # as a whole: many small tests

OURS = {"created-by": "distill-sbs"}
RUN = "--experiment=cqa_dss_base"


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    yield from make_cloud(tmp_path)


@pytest.fixture
def installed(cloud: Cloud) -> Cloud:
    """A slice with everything on it, and data."""
    for script, *flags in (["create"], ["install"], ["prepare", "--dataset=cqa"]):
        cloud.run(script, *flags, *(["--source_dir=datasets"] if script == "prepare" else []))
    cloud.calls()
    return cloud


# ---------------------------------- whole runs -------------------------------


def test_create_twice(cloud: Cloud) -> None:
    cloud.run("create", "--provisioning=spot")
    assert cloud.changes() == ["compute tpus tpu-vm create distill-sbs"]
    assert cloud.read("tpus")["distill-sbs"] == {
        "state": "READY",
        "type": "v5litepod-8",
        "labels": OURS,
    }
    assert "is there already, and READY" in cloud.run("create", "--provisioning=spot")
    assert cloud.changes() == []
    other = cloud.run("create", "--accelerator_type=v4-8", status=2)
    assert "distill-sbs exists and is a v5litepod-8, not a v4-8" in other
    assert cloud.changes() == []


def test_create_queued_waits_and_twice(cloud: Cloud) -> None:
    cloud.run("create", "--queued", "--no_wait")
    assert cloud.changes() == ["compute tpus queued-resources create distill-sbs"]
    assert cloud.read("tpus") == {}
    text = cloud.run("create", "--queued")
    assert "distill-sbs: TPU VM READY" not in text and cloud.changes() == []
    assert cloud.read("tpus")["distill-sbs"]["state"] == "READY"
    cloud.run("create", "--queued", "--name=second")
    assert cloud.read("tpus")["second"]["state"] == "READY"
    assert cloud.changes() == ["compute tpus queued-resources create second"]


def test_what_is_gone_is_not_taken_for_ready(cloud: Cloud) -> None:
    vm = {"type": "v5litepod-8", "labels": OURS, "state": "PREEMPTED"}
    cloud.write(tpus={"distill-sbs": vm})
    assert "is PREEMPTED; resume.sh replaces it" in cloud.run("create", status=2)
    cloud.write(tpus={}, requests={"distill-sbs": {**vm, "state": "SUSPENDED"}})
    assert "is SUSPENDED; resume.sh replaces it" in cloud.run("create", "--queued", status=2)
    assert cloud.changes() == []


@pytest.mark.parametrize("labels", [{}, {"created-by": "somebody-else"}], ids=["none", "other"])
@pytest.mark.parametrize("kind", ["tpus", "requests"])
def test_foreign_resources_are_left_alone(cloud: Cloud, kind: str, labels: dict[str, str]) -> None:
    foreign = {"distill-sbs": {"state": "READY", "type": "v5litepod-8", "labels": labels}}
    cloud.write(**{kind: foreign})
    for script, *flags in (["delete"], ["create"], ["resume", RUN]):
        text = cloud.run(script, *flags, status=2)
        assert "does not carry the label created-by=distill-sbs" in text
    assert cloud.changes() == []
    assert cloud.read(kind) == foreign


def test_nothing_is_deleted_where_one_of_two_is_foreign(cloud: Cloud) -> None:
    ours = {"state": "ACTIVE", "type": "v5litepod-8", "labels": OURS}
    cloud.write(
        requests={"distill-sbs": ours},
        tpus={"distill-sbs": {**ours, "state": "READY", "labels": {}}},
    )
    cloud.run("delete", status=2)
    assert cloud.changes() == []


def test_delete_twice_and_only_that_name(cloud: Cloud) -> None:
    cloud.run("create")
    cloud.run("create", "--name=a-distill-sbs")
    cloud.calls()
    cloud.run("delete")
    assert cloud.changes() == ["compute tpus tpu-vm delete distill-sbs"]
    assert list(cloud.read("tpus")) == ["a-distill-sbs"]
    assert "there is no TPU VM or queued request distill-sbs" in cloud.run("delete")
    assert cloud.changes() == []


def test_delete_takes_the_request_with_its_vm(cloud: Cloud) -> None:
    cloud.run("create", "--queued")
    cloud.calls()
    cloud.run("delete")
    assert cloud.changes() == ["compute tpus queued-resources delete distill-sbs"]
    assert cloud.read("tpus") == cloud.read("requests") == {}


def test_failing_gcloud_is_no_empty_cloud(cloud: Cloud) -> None:
    """What cannot be asked is not taken for absent: nothing is created or deleted."""
    cloud.write(fails=True)
    for script, *flags in (
        ["create"],
        ["delete", "--with_bucket"],
        ["prepare", "--dataset=cqa", "--source_dir=datasets"],
        ["resume", RUN],
    ):
        process = cloud.start(script, *flags)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (1, 2)
        assert "problem refreshing" in errors
    assert cloud.changes() == []


def test_bucket_is_made_once_and_deleted_only_if_ours(installed: Cloud) -> None:
    assert installed.read("buckets") == {"my-bucket": OURS}
    raw = installed.root / "buckets/my-bucket/raw/cqa/cqa_train.json"
    assert raw.read_text() == "{}\n"
    prepare = ["prepare", "--dataset=cqa", "--source_dir=datasets"]
    assert "--overwrite prepares it again" in installed.run(*prepare)
    assert installed.changes() == []
    installed.run(*prepare, "--overwrite")
    assert installed.changes() == ["storage rsync datasets/cqa gs://my-bucket/raw/cqa"]

    # Something else lies in the bucket: that stays, and so does the bucket.
    stranger = installed.root / "buckets/my-bucket/thesis.tex"
    stranger.write_text("years of work")
    installed.run("delete", "--with_bucket", status=1)
    assert stranger.exists() and not raw.exists()
    stranger.unlink()
    installed.run("delete", "--with_bucket")
    assert installed.read("buckets") == {}
    installed.calls()
    installed.run("delete", "--with_bucket")
    assert installed.changes() == []


def test_bucket_of_the_users_own_is_used_and_never_deleted(cloud: Cloud) -> None:
    cloud.write(buckets={"my-bucket": {}})
    (cloud.root / "buckets/my-bucket").mkdir(parents=True)
    cloud.run("create")
    cloud.run("install")
    cloud.run("prepare", "--dataset=cqa", "--source_dir=datasets", "--bucket=gs://my-bucket/a")
    assert (cloud.root / "buckets/my-bucket/a/data/cqa/info.json").exists()
    assert cloud.read("buckets") == {"my-bucket": {}}
    cloud.calls()
    assert "the bucket gs://my-bucket does not carry" in cloud.run(
        "delete", "--with_bucket", "--bucket=gs://my-bucket/a", status=2
    )
    assert cloud.changes() == []


def test_install_twice(installed: Cloud) -> None:
    calls = (installed.root / "uv_calls").read_text()
    assert calls.count("venv --quiet --python=3.11 venv") == 2  # one for each worker
    stale = installed.worker_file("source/stale.py")
    stale.touch()
    assert "distill_sbs is installed, with jax 0.10.2 libtpu 0.0.51" in installed.run("install")
    calls = (installed.root / "uv_calls").read_text()
    assert calls.count("venv --quiet --python=3.11 venv") == 2
    assert calls.count("--constraint=source/constraints.txt") == 4
    assert not stale.exists()
    for worker in (0, 1):
        assert installed.worker_file("source/gin/experiments/quickstart.gin", worker).exists()


def test_train_twice_stop_and_again(installed: Cloud) -> None:
    installed.set_training("lasts")
    assert installed.run("train", RUN).count("started cqa_dss_base") == 2
    assert installed.run("train", RUN).count("already, nothing started") == 2  # at once
    wait_for(lambda: len(installed.trained()) == 2)
    assert installed.trained()[0] == (
        "-m distill_sbs.train --multiprocess --gin_file=gin/experiments/cqa_dss_base.gin"
        " --gin.MODEL_DIR='gs://my-bucket/runs/cqa_dss_base' --gin.DATA_DIR='gs://my-bucket/data'"
    )
    assert installed.run("train", RUN).count("trains cqa_dss_base already, nothing started") == 2
    assert "stop it first, nothing installed" in installed.run("install", status=1)
    assert len(installed.trained()) == 2

    assert installed.run("train", "--stop").count("asked cqa_dss_base to save and stop") == 2
    status = installed.worker_file("logs/cqa_dss_base.status")
    wait_for(status.exists)
    wait_for(status.read_text)
    assert status.read_text() == "143\n"
    assert "cqa_dss_base: exit status 143" in installed.run("watch")
    assert "nothing trains" in installed.run("train", "--stop")

    installed.set_training("finishes")
    installed.run("train", RUN)  # the same command continues: the same MODEL_DIR
    wait_for(lambda: len(installed.trained()) == 4)
    assert len(set(installed.trained())) == 1


def test_flags_reach_training_as_they_were_typed(installed: Cloud) -> None:
    bindings = ["--gin.STUDENT_OVERRIDES={'dtype': \"float32\"}", "--gin.NOTE='it''s $HOME & `x`'"]
    installed.run("train", RUN, "--run=a/b", "--", *bindings)
    wait_for(lambda: len(installed.trained()) == 2)
    assert installed.trained()[0].endswith(" ".join(bindings))
    assert installed.worker_file("logs/a__b.log").exists()


def test_resume_from_nothing_to_the_end(cloud: Cloud) -> None:
    """One command does all that is missing, and once more does nothing."""
    cloud.run("resume", RUN, "--provisioning=spot", "--every=1")
    assert cloud.changes() == ["compute tpus tpu-vm create distill-sbs"]
    assert (cloud.root / "buckets/my-bucket/runs/cqa_dss_base/results.json").exists()
    trained = cloud.trained()
    assert "cqa_dss_base has finished" in cloud.run("resume", RUN)
    assert cloud.changes() == [] and cloud.trained() == trained


@pytest.mark.parametrize("queued", [False, True], ids=["at_once", "queued"])
def test_resume_after_preemption(cloud: Cloud, queued: bool) -> None:
    flags = [RUN, "--provisioning=spot", *(["--queued"] if queued else [])]
    kind = "queued-resources" if queued else "tpu-vm"
    cloud.set_training("lasts")
    cloud.run("resume", *flags)
    wait_for(lambda: len(cloud.trained()) == 2)
    assert "running cqa_dss_base" in cloud.run("resume", *flags)
    assert cloud.changes() == [f"compute tpus {kind} create distill-sbs"]

    cloud.set_training("ends")  # the machines go away
    wait_for(cloud.worker_file("logs/cqa_dss_base.status").exists)
    if queued:
        gone = {**cloud.read("requests")["distill-sbs"], "state": "SUSPENDED"}
        cloud.write(requests={"distill-sbs": gone}, tpus={})
    else:
        cloud.write(
            tpus={"distill-sbs": {**cloud.read("tpus")["distill-sbs"], "state": "PREEMPTED"}}
        )
    cloud.set_training("finishes")
    cloud.run("resume", *flags, "--every=1")
    assert cloud.changes() == [
        f"compute tpus {kind} delete distill-sbs",
        f"compute tpus {kind} create distill-sbs",
    ]
    # On fresh disks the same command trained, in the same MODEL_DIR.
    assert len(cloud.trained()) == 4 and len(set(cloud.trained())) == 1


def test_resume_waits_where_there_is_no_capacity(cloud: Cloud) -> None:
    cloud.write(no_capacity=True)
    assert "no more capacity" in cloud.run("resume", RUN, status=1)
    process = cloud.start("resume", RUN, "--every=1")
    wait_for(lambda: (cloud.root / "calls.jsonl").read_text().count('"create"') > 2)
    cloud.write(no_capacity=False)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "cqa_dss_base has finished" in errors


def test_resume_does_not_repeat_what_cannot_go_well(installed: Cloud) -> None:
    installed.set_training("refuses")
    text = installed.run("resume", RUN, "--every=1", status=2)
    assert "training refused its settings" in text
    assert len(installed.trained()) == 2  # once on each worker
    assert "BATCH_SIZE=10 is not a multiple" in installed.run("watch")
    installed.set_training("crashes")
    text = installed.run("resume", RUN, "--run=b", "--every=1", "--max_restarts=2", status=2)
    assert "training failed 3 times" in text
    assert len(installed.trained()) == 2 + 2 * 3


@pytest.mark.campaign
def test_sweep_and_again(installed: Cloud) -> None:
    sweep = ["sweep", RUN, "--mixtures=cqa_finetune,cqa_dss_palm", "--data_fractions=1.0"]
    text = installed.run(*sweep, "--seeds=0,1")
    assert "4 runs, 0 to do" in text
    assert "| cqa_dss_palm | 50.0 ± 0.0 |" in text
    trained = installed.trained()
    assert len(trained) == 4 * 2  # both workers
    folders = re.findall(r"'gs://my-bucket/runs/sweeps/(\S+)'", "\n".join(trained))
    assert folders[::2] == [
        f"cqa_dss_base/{mixture}/fraction_1/seed_{seed}"
        for seed in (0, 1)
        for mixture in ("cqa_finetune", "cqa_dss_palm")
    ]
    installed.run(*sweep, "--seeds=0,1")
    assert installed.trained() == trained
    output = installed.checkout / "runs/sweeps/cqa_dss_base"
    assert len(json.loads((output / "summary.json").read_text())) == 2
