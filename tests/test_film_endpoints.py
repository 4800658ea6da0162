"""Speech from endpoints, against a local one that answers well, badly, late and not at all."""

import io
import json
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from minisora.film import asking
from minisora.film.asking import EndpointError, ask_endpoint
from minisora.film.speech import SpeechError, speak
from minisora.film.speech_endpoints import Azure, read_wav

KEY = "sk-not-a-real-key"


def wav(seconds=0.5, rate=24000, width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.full(round(seconds * rate * width / 2), 1000, "<i2").tobytes())
    return file.getvalue()


@pytest.fixture
def server(monkeypatch):
    "A local endpoint that gives the answers of a list, (status, body, headers), the last for ever."
    answers, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, dict(self.headers), body))
            status, data, headers = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url + "/v1/")
    monkeypatch.setenv("AZURE_SPEECH_KEY", KEY)
    monkeypatch.setenv("AZURE_SPEECH_URL", url + "/azure")
    real = asking.time.sleep
    monkeypatch.setattr(asking.time, "sleep", lambda s: real(min(s, 0.01)))
    yield answers, asked
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("name", ["openai", "azure"])
def test_a_sentence_is_asked_for_and_heard(server, name):
    answers, asked = server
    answers.append((200, wav(), {}))
    said = speak('Say "1 < 2 & 3".', name, rate=1.25, fallback=())
    assert said.speaker == name and said.rate == 24000 and said.seconds == 0.5
    assert [w for w, _, _ in said.words][0] == "Say "
    path, headers, body = asked[0]
    if name == "openai":
        sent = json.loads(body)
        assert path == "/v1/audio/speech" and sent["input"] == 'Say "1 < 2 & 3".'
        assert sent["speed"] == 1.25 and headers["Authorization"] == f"Bearer {KEY}"
    else:
        assert b"1 &lt; 2 &amp; 3" in body and b'rate="1.25"' in body


BAD = {
    "key": ([(401, b"", {})], "answered 401 .*is the key right", 1),
    "busy": ([(429, b"", {"Retry-After": "1"})], "answered 429 .* 4 times", 4),
    "broken": ([(500, b"", {})], "answered 500 .* 4 times", 4),
    "garbage": ([(200, b"<html>", {})], "the answer is no sound", 1),
    "nothing": ([(200, b"", {})], "the answer is no sound", 1),
    "8 bits": ([(200, wav(width=1), {})], "8 bits, not 16", 1),
    "missing": ([(404, b"", {})], "answered 404", 1),
}


@pytest.mark.parametrize("given, message, times", BAD.values(), ids=BAD)
def test_what_goes_wrong_is_named_and_somebody_else_speaks(server, given, message, times):
    answers, asked = server
    answers.extend(given)
    with pytest.raises(SpeechError, match=message) as e:
        speak("hello", "openai", fallback=())
    assert KEY not in str(e.value) and len(asked) == times and "\n" not in str(e.value)
    with pytest.warns(UserWarning, match="openai: .*; silent speaks instead"):
        assert speak("hello", "openai", fallback=("silent",)).speaker == "silent"


def test_a_busy_one_is_asked_again(server):
    answers, asked = server
    answers.extend([(429, b"", {}), (503, b"", {"Retry-After": "soon"}), (200, wav(), {})])
    assert speak("hello", "openai", fallback=()).seconds == 0.5 and len(asked) == 3


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(asking.time, "sleep", lambda s: None)
    with pytest.raises(EndpointError, match="127.0.0.1:9 cannot be reached"):
        ask_endpoint("http://127.0.0.1:9/x", b"", {}, timeout=5)


def test_keys_come_from_the_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_SPEECH_KEY", "AZURE_SPEECH_REGION", "AZURE_SPEECH_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpeechError, match="the environment has no OPENAI_API_KEY"):
        speak("hello", "openai", fallback=())
    with pytest.raises(SpeechError, match="no AZURE_SPEECH_REGION"):
        speak("hello", "azure", fallback=())
    monkeypatch.setenv("AZURE_SPEECH_REGION", "x.evil.org/?")
    with pytest.raises(EndpointError, match="no AZURE_SPEECH_REGION"):
        Azure().request("hello", None, 1.0, "en")
    assert read_wav(wav(0.1))[1] == 24000
