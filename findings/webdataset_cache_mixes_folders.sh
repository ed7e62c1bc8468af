#!/usr/bin/env bash
# webdataset 1.0.2: with cache_dir, a shard is read from the cache if one of the same file name was cached from another folder, or another server.
#
# Input: two datasets on an HTTP server, train/000000.tar and val/000000.tar (shards are mostly numbered so), read one after the other with the same
# cache_dir. One would expect the cache to tell URLs apart. But it names its files after the last part of the URL only, and checks no more of them than
# that they are tar files. So the second dataset yields the samples of the first, each with the URL that was asked for:
#
#   read                                cached      samples
#   http://127.0.0.1/train/000000.tar   000000.tar  a clip for training
#   http://127.0.0.1/val/000000.tar     000000.tar  a clip for training
#
# A validation score is then one of training clips. Exits 1 if the behaviour has changed. (Needs curl, which webdataset reads HTTP with.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cd "$work"
NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import webdataset


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


texts = {"train": "a clip for training", "val": "a clip for validation"}
for folder, text in texts.items():
    os.makedirs(f"served/{folder}")
    with webdataset.TarWriter(f"served/{folder}/000000.tar") as writer:
        writer.write({"__key__": folder, "txt": text})
os.mkdir("cache")
server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="served"))
threading.Thread(target=server.serve_forever, daemon=True).start()

found = []
print("read                                cached      samples")
for folder in texts:
    url = f"http://127.0.0.1:{server.server_port}/{folder}/000000.tar"
    dataset = webdataset.WebDataset(url, shardshuffle=False, cache_dir="cache")
    (sample,) = list(dataset)
    found.append(sample["txt"].decode())
    shown = sample["__url__"].replace(f":{server.server_port}", "")
    print(f"{shown:35} {' '.join(os.listdir('cache'))}  {found[-1]}")
sys.exit(int(found != [texts["train"]] * 2))
PYTHON
