"""A server process with the OpenAI chat API, for the tests of clients: rates what it is shown by its brightness.

    with serve() as server:      # another process, a real port
        server.plan(["429", "500", "ok"])
        ...
        server.requests          # what arrived, in order

Every answer depends on the JPEG frames and the text that were sent. A plan says what happens to the next requests, one
word each: ok, slow (4 s late), nonsense (no JSON), empty (JSON without an answer), chatter (an answer without ratings),
drop (the connection ends), key (refused without the bearer token `k`), short (cut off below 2048 tokens), or an HTTP
status; or an object: a `choice` as the API has it, with RATING where the ratings belong, a `status` and an `error`, or
`raw`, the characters of a whole response, after which the connection ends. After the plan all is ok.
"""

import base64
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageStat

MODEL = "UnifiedReward"


class Handler(BaseHTTPRequestHandler):
    plan: list[str] = []  # noqa: RUF012 (one server a process)
    requests: list[dict] = []  # noqa: RUF012
    lock = threading.Lock()
    active = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, self.requests)

    def do_PUT(self):
        Handler.plan = self.body()
        self.requests.clear()
        self.reply(200, {})

    def do_POST(self):
        request = self.body()
        with self.lock:
            Handler.active += 1
            fate = self.plan.pop(0) if self.plan else "ok"
            about = {"path": self.path, "fate": fate, "active": Handler.active, "max_tokens": request["max_tokens"]}
            self.requests.append(summary(request) | about | {"key": self.headers["Authorization"]})
        try:
            self.meet(fate, request)
        finally:
            with self.lock:
                Handler.active -= 1

    def meet(self, fate, request):
        if fate == "slow":
            time.sleep(4)
        if isinstance(fate, dict):
            self.meet_object(fate, request)
        elif fate == "drop":
            self.close_connection = True
        elif fate == "key" and self.headers["Authorization"] != "Bearer k":
            self.reply(401, {"error": f"Unauthorized: {self.headers['Authorization']}"})
        elif fate == "short" and request["max_tokens"] < 2048:
            message = {"role": "assistant", "content": "<think> hmm, let me look at the frames"}
            self.reply(200, {"choices": [{"message": message, "finish_reason": "length"}]})
        elif fate == "nonsense":
            self.reply(200, "<html>It works!</html>", plain=True)
        elif fate.isdecimal():
            retry = {"Retry-After": "1"} if fate == "429" else {}
            self.reply(int(fate), {"error": {"message": "the server's own words", "code": int(fate)}}, **retry)
        elif self.path != "/v1/chat/completions" or request["model"] != MODEL:
            self.reply(404, {"error": {"message": f"The model `{request['model']}` does not exist."}})
        else:
            answer = {"empty": None, "chatter": "A fine video, I like it."}.get(fate, rating(request))
            time.sleep(0.05)
            self.reply(200, {"choices": [{"message": {"role": "assistant", "content": answer}}]})

    def meet_object(self, fate, request):
        if "raw" in fate:
            self.wfile.write(fate["raw"].encode("latin-1"))
            self.close_connection = True
        elif "status" in fate:
            self.reply(fate["status"], fate["error"])
        else:
            escaped = json.dumps(rating(request))[1:-1]
            self.reply(200, {"choices": [json.loads(json.dumps(fate["choice"]).replace("RATING", escaped))]})

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, status, content, *, plain=False, **headers):
        data = content.encode() if plain else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def frames(request):
    parts = request["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) for url in urls]


def text(request):
    return request["messages"][0]["content"][-1]["text"]


def summary(request):
    sizes = [image.size for image in frames(request)]
    levels = [round(sum(ImageStat.Stat(image).mean) / 3, 1) for image in frames(request)]
    return {"sizes": sizes, "levels": levels, "text": text(request), "temperature": request["temperature"]}


def rating(request):
    """Ratings that rise with the mean brightness of the frames, on the scale that the text asks for."""
    levels = summary(request)["levels"]
    share = sum(levels) / len(levels) / 255
    if "Final Score" in text(request):
        names = ("Visual Quality", "Temporal Consistency", "Dynamic Degree", "Text-to-Video Alignment")
        lines = [f"{name} (1-4): {1 + 3 * share:.4f}" for name in (*names, "Factual Consistency")]
        return "\n".join([*lines, f"Final Score: {1 + 9 * share:.4f}"])
    lines = [f"{name} Score (1-5): {1 + 4 * share:.4f}" for name in ("Alignment", "Physics", "Style")]
    return "\n".join(["The frames show a video.", *lines])


class Server:
    def __init__(self, url):
        self.url = url

    def plan(self, fates):
        data = json.dumps(fates).encode()
        urllib.request.urlopen(urllib.request.Request(self.url, data, method="PUT")).close()

    @property
    def requests(self):
        with urllib.request.urlopen(self.url) as response:
            return json.load(response)


@contextmanager
def serve():
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
