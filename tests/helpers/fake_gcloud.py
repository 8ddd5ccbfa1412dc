"""A gcloud for tests of tpu_scripts/: it keeps TPU VMs, requests and buckets in a folder.

Enters: a command line, and the folder $FAKE_GCLOUD with `state.json`. Leaves: the command line in
`calls.jsonl`, the changed state, and what gcloud 528 prints. `ssh` runs the command for real, in
bash, with `workers/NUMBER` as the home folder; the objects of gs://NAME/… are files below
`buckets/NAME/`.

It knows the commands and flags that the scripts use; any other is an error, and so is deleting or
creating what cannot be.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, NoReturn

ROOT = pathlib.Path(os.environ["FAKE_GCLOUD"])
LISTED = {"tpu-vm": "tpus", "queued-resources": "requests"}


def fail(message: str) -> NoReturn:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    raise SystemExit(1)


def local(url: str) -> pathlib.Path:
    assert url.startswith("gs://"), url
    return ROOT / "buckets" / url.removeprefix("gs://")


def split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    words = [each for each in arguments if not each.startswith("--")]
    flags = [each.partition("=") for each in arguments if each.startswith("--")]
    return words, {name: value for name, _, value in flags}


def list_resources(kind: str, state: dict[str, Any], flags: dict[str, str]) -> None:
    name = re.fullmatch(r"name ~ /([-a-z0-9]+)\$", flags["--filter"])
    assert name, flags
    for each, resource in list(state[LISTED[kind]].items()):
        if each == name[1]:
            label = resource["labels"].get("created-by", "")
            accelerator = [resource["type"]] if kind == "tpu-vm" else []
            print(",".join([resource["state"], *accelerator, label]))
            if resource["state"] == "WAITING_FOR_RESOURCES":  # granted before the next look
                resource["state"] = "ACTIVE"
                state["tpus"][each] = {**resource, "state": "READY"}


def compute(kind: str, action: str, words: list[str], flags: dict[str, str], state: Any) -> None:
    assert flags["--project"] and flags["--zone"], flags
    if action == "list":
        return list_resources(kind, state, flags)
    name = words[0]
    if action == "create":
        if state.get("no_capacity"):
            fail("There is no more capacity in the zone")
        if name in state[LISTED[kind]]:
            fail(f"ALREADY_EXISTS: Resource '{name}' already exists")
        initial = "READY" if kind == "tpu-vm" else "WAITING_FOR_RESOURCES"
        state[LISTED[kind]][name] = {
            "state": initial,
            "type": flags["--accelerator-type"],
            "labels": dict(pair.split("=") for pair in flags["--labels"].split(",")),
        }
    elif action == "delete":
        if name not in state[LISTED[kind]]:
            fail(f"NOT_FOUND: Resource '{name}' was not found")
        del state[LISTED[kind]][name]
        if kind == "queued-resources" and "--force" in flags:
            state["tpus"].pop(name, None)
        for worker in (ROOT / "workers").iterdir():  # the next TPU VM has fresh disks
            shutil.rmtree(worker)
            worker.mkdir()
    elif action in ("ssh", "scp"):
        remote = name if action == "ssh" else words[-1].partition(":")[0]
        if state["tpus"].get(remote, {}).get("state") != "READY":
            fail(f"{remote} is not READY")
        workers = sorted((ROOT / "workers").iterdir())
        if flags["--worker"] != "all":
            workers = [ROOT / "workers" / flags["--worker"]]
        for worker in workers:
            if action == "scp":
                for path in words[:-1]:
                    shutil.copy(path, worker / words[-1].partition(":")[2])
            else:
                subprocess.run(
                    ["bash", "-c", flags["--command"]],
                    cwd=worker,
                    env={**os.environ, "HOME": str(worker)},
                    stdin=subprocess.DEVNULL,
                    check=True,
                )
    else:
        fail(f"Invalid choice: '{action}'")


def storage(words: list[str], flags: dict[str, str], state: Any) -> None:
    action, *urls = words
    if action == "buckets":
        action, url = urls
        name = url.removeprefix("gs://")
        if action == "create":
            if name in state["buckets"]:
                fail(f"HTTPError 409: {name} exists")
            state["buckets"][name] = {}
            local(url).mkdir(parents=True)
        elif name not in state["buckets"]:
            fail(f"{url} not found: 404.")
        elif action == "describe":
            print(state["buckets"][name].get("created-by", ""))
        elif action == "update":
            label, _, value = flags["--update-labels"].partition("=")
            state["buckets"][name][label] = value
        elif action == "delete":
            if any(each.is_file() for each in local(url).rglob("*")):
                fail(f"HTTPError 409: the bucket {name} is not empty")
            shutil.rmtree(local(url))
            del state["buckets"][name]
    elif action == "ls":
        if not local(urls[0]).exists():
            fail("One or more URLs matched no objects.")
        print(urls[0])
    elif action == "cat":
        print(local(urls[0]).read_text(), end="")
    elif action == "rm":
        shutil.rmtree(local(urls[0]))
    elif action == "rsync":
        source, target = (
            local(url) if url.startswith("gs://") else pathlib.Path(url) for url in urls
        )
        left_out = re.compile(flags.get("--exclude", r"(?!)"))
        for path in source.rglob("*"):
            relative = path.relative_to(source)
            if path.is_file() and not left_out.match(str(relative)):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / relative)
    else:
        fail(f"Invalid choice: '{action}'")


def main(arguments: list[str]) -> None:
    with (ROOT / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    words, flags = split(arguments)
    with (ROOT / "state.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        if state.get("fails"):
            fail("There was a problem refreshing your current auth tokens")
        if words[:2] == ["compute", "tpus"]:
            compute(words[2], words[3], words[4:], flags, state)
        elif words[0] == "storage":
            storage(words[1:], flags, state)
        else:
            fail(f"Invalid choice: '{words[0]}'")
        file.seek(0)
        file.truncate()
        json.dump(state, file)


if __name__ == "__main__":
    main(sys.argv[1:])
