"""A teacher that answers from a fixture and misbehaves on purpose: an OpenAI-compatible server.

    python tests/helpers/scripted_teacher.py --answers=answers.jsonl --faults=0.2 --log=served.jsonl

Enters: lines {"input", "answer"}; requests for `/v1/chat/completions` and `/v1/completions`, whose
last question must hold an input of the fixture. Leaves: answers, and faults drawn from a seed and
the number of times that this input was asked about; a line in the log for every answer given. The
first line on standard output is the port. A real server in a process of its own, on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import signal
import sys

import hostile_answers

FAULTS = (
    "429",
    "500",
    "503",
    "timeout",
    "reset",
    "truncated",
    "malformed",
    "no choices",
    "empty",
)
RUN_ON = "\n\nQ: How many ducks are on the pond?\nA: There are 3. The answer is ( 1 + 2 )."


class ScriptedTeacher:
    """The server; see above. `options` are those of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.answers: dict[str, str] = {}
        self.hopeless: set[str] = set()
        with open(options.answers, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                self.answers[row["input"]] = row["answer"]
                if row.get("hopeless"):
                    self.hopeless.add(row["input"])
        self.asked: collections.Counter[tuple[str, int]] = collections.Counter()
        self.served: collections.Counter[str] = collections.Counter()
        self.in_flight = self.most_in_flight = 0
        self.log = open(options.log, "a", encoding="utf-8") if options.log else None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; returns whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        path = lines[0].split()[1]
        headers = dict(
            (name.lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        )
        request = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.respond(path, headers, request, writer)
        finally:
            self.in_flight -= 1

    async def respond(self, path: str, headers: dict, request: dict, writer) -> bool:
        name = self.options.key_header.lower()
        given = headers.get(name, "")
        said = given.removeprefix("Bearer ")
        wanted = f"Bearer {self.options.key}" if name == "authorization" else self.options.key
        wanted = self.options.raw_key or wanted
        if (self.options.key or self.options.raw_key) and given != wanted:
            await self.error(writer, 401, f"Incorrect API key provided: {said}")
            return True
        prefix, query = self.options.address.partition("?")[::2]
        query = f"?{query}" if query else ""
        is_chat = path == f"{prefix}/chat/completions{query}"
        if not is_chat and path != f"{prefix}/completions{query}":
            await self.error(writer, 404, f"no such address {path}")
            return True
        for name in self.options.refuse_parameter:
            if name in request:
                refusal = self.options.refusal
                if refusal:
                    body = refusal.format(name=name).encode()
                    await self.send(writer, 400, body, head=["Content-Type: text/plain"])
                else:
                    await self.error(writer, 400, f"Unsupported parameter: '{name}'", param=name)
                return True
        question = request["messages"][-1]["content"] if is_chat else request["prompt"]
        question = question.rpartition("\n\n")[2]
        text = next((each for each in self.candidates(question) if each in self.answers), None)
        if text is None:
            await self.error(writer, 400, f"not in the fixture: {question[-80:]!r}")
            return True
        if text in self.hopeless:
            await self.error(writer, 400, "this model's maximum context length is exceeded")
            return True
        sample = request.get("seed") or 0
        self.asked[text, sample] += 1
        fault = self.fault(text, sample)
        if fault is not None:
            return await self.misbehave(fault, request, writer)
        await asyncio.sleep(self.options.seconds)
        answer = self.answers[text]
        if random.Random(f"run on {text}").random() < self.options.run_on:
            answer += RUN_ON
        body = self.body(request, answer, is_chat)
        form = hostile_answers.choose_form(
            text, self.options.hostile, self.options.seed, self.options.forms
        )
        before = self.asked[text, sample] - 1
        if form and hostile_answers.is_sent(form, before, self.options.hiccups):
            status, head, content = hostile_answers.ALL[form](body)
            if form in hostile_answers.ANSWERS or form in hostile_answers.UNPARSED:
                self.count_served(text, sample)
            await self.send(writer, status, content, head=head)
            return True
        self.count_served(text, sample)
        await self.send(writer, 200, body)
        return True

    def count_served(self, text: str, sample: int) -> None:
        if self.log:
            self.log.write(json.dumps({"input": text, "sample": sample}) + "\n")
            self.log.flush()
        self.served[text] += 1

    def candidates(self, question: str) -> list[str]:
        """The input in a question: without the marks of its layout, the query's end, a hint."""
        text = question.removeprefix("Q: ").removesuffix("\nA:")
        return [text, text.rpartition("\n(The correct answer")[0]]

    def fault(self, text: str, sample: int) -> str | None:
        count = self.asked[text, sample]
        draw = random.Random(f"{self.options.seed} {text} {sample} {count}")
        if count > self.options.most_faults or draw.random() >= self.options.faults:
            return None
        return draw.choice(self.options.kinds)

    async def misbehave(self, fault: str, request: dict, writer) -> bool:
        if fault == "429":
            await self.error(writer, 429, "slow down", extra=[f"Retry-After: {self.options.wait}"])
            return True
        if fault in ("500", "503"):
            await self.error(writer, int(fault), "the server had an error")
            return True
        if fault == "timeout":
            await asyncio.sleep(self.options.silence)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        whole = json.dumps(self.body(request, "Reasons. The answer is ( 1 + 1 ).", True)).encode()
        if fault == "truncated":
            await self.send(writer, 200, whole[: len(whole) // 2], length=len(whole))
            return False
        if fault == "malformed":
            await self.send(writer, 200, whole[: len(whole) // 2])
        elif fault == "no choices":
            await self.send(writer, 200, {"object": "chat.completion", "choices": []})
        else:
            await self.send(writer, 200, self.body(request, "", "messages" in request))
        return True

    def body(self, request: dict, answer: str, is_chat: bool) -> dict:
        content = json.dumps(request.get("messages") or request.get("prompt"))
        choice: dict = {"index": 0, "finish_reason": "stop"}
        if is_chat:
            choice["message"] = {"role": "assistant", "content": answer}
        else:
            choice["text"] = answer
        usage = {"prompt_tokens": len(content.split()), "completion_tokens": len(answer.split())}
        usage["total_tokens"] = sum(usage.values())
        return {
            "id": "scripted",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 0,
            "model": request["model"],
            "choices": [choice],
            **({"usage": usage} if not self.options.no_usage else {}),
        }

    async def error(
        self, writer, status: int, message: str, param: str | None = None, extra: list = ()
    ) -> None:
        error = {"message": message, "type": "scripted", "param": param, "code": None}
        await self.send(writer, status, {"error": error}, extra=extra)

    async def send(
        self,
        writer,
        status: int,
        body,
        length: int | None = None,
        extra=(),
        head=("Content-Type: application/json",),
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} Scripted", *head, *extra]
        if status != 204:
            head.append(f"Content-Length: {len(data) if length is None else length}")
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        await writer.drain()

    def summary(self) -> dict:
        return {
            "requests": self.asked.total(),
            "answers": self.served.total(),
            "inputs_answered": len(self.served),
            "inputs_answered_twice": sum(count > 1 for count in self.served.values()),
            "most_in_flight": self.most_in_flight,
        }


async def serve(options: argparse.Namespace) -> None:
    teacher = ScriptedTeacher(options)
    server = await asyncio.start_server(teacher.handle, "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Never outlives a test that was killed.
    try:
        await asyncio.wait_for(stop.wait(), options.life)
    except TimeoutError:
        pass
    print(json.dumps(teacher.summary()), flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A scripted teacher.")
    parser.add_argument("--answers", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--most_faults", type=int, default=4, help="per input and sample")
    parser.add_argument("--hostile", type=float, default=0.0, help="share of inputs, see forms")
    parser.add_argument("--hiccups", type=int, default=hostile_answers.MOST_HICCUPS)
    parser.add_argument("--forms", nargs="*", choices=hostile_answers.ALL)
    parser.add_argument("--run_on", type=float, default=0.0, help="share of answers that run on")
    parser.add_argument("--seconds", type=float, default=0.0, help="a call takes")
    parser.add_argument("--silence", type=float, default=3.0, help="seconds of a timeout")
    parser.add_argument("--wait", default="1", help="Retry-After")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", help="the only key that is let in")
    parser.add_argument("--refuse_parameter", nargs="*", default=[])
    parser.add_argument("--refusal", help="its words, as plain text, with {name}")
    parser.add_argument("--raw_key", help="the whole header that is let in")
    parser.add_argument("--key_header", default="Authorization")
    parser.add_argument("--address", default="/v1", help="path and query that calls come to")
    parser.add_argument("--no_usage", action="store_true")
    parser.add_argument("--log", help="a line for every answer given")
    parser.add_argument("--life", type=float, default=900.0, help="seconds until it ends itself")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(serve(parse(sys.argv[1:])))
    # Connections still open do not matter.
    sys.stdout.flush()
