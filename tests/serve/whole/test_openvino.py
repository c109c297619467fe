"""`varco serve --provider openvino`: its options reach the model, and answers under way at once are exact."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.makers.server import DEMO_BUNDLE, RunningServer
from varco_runtime import Varco

QUESTIONS = ("Hello", "What is this?", "안녕하세요", "Read.")


def test_answers_of_several_callers_are_those_of_the_cpu() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    cpu = Varco.load(DEMO_BUNDLE, "cpu", threads=1)
    expected = [cpu.ask(None, question, max_new_tokens=12, ignore_eos=True).text for question in QUESTIONS]
    exact = ("--provider", "openvino", "--precision", "fp32", "--threads", "1", "--slots", "4")

    def ask(server: RunningServer, question: str) -> str:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 12, "ignore_eos": True}
        answer = server.client.post("/v1/chat/completions", json={**body, "temperature": 0})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    with RunningServer(*exact) as server, ThreadPoolExecutor(len(QUESTIONS)) as callers:
        assert list(callers.map(lambda question: ask(server, question), QUESTIONS)) == expected


def test_openvinos_options_for_another_provider_end_it_in_one_line() -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "varco_cli.main",
        "serve",
        str(DEMO_BUNDLE),
        "--port",
        "0",
        "--precision",
        "fp32",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "are for the provider openvino, got 'auto'" in ended.stderr.splitlines()[-1]
