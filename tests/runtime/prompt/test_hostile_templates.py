"""Templates that ask for more than a prompt is worth. No deadline helps here: the bounds alone must end each."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from tests.export.config.test_prompts import TEXT_TEMPLATE, checkpoint, load
from varco_runtime.errors import BundleError, CheckpointError, PromptError
from varco_runtime.prompt import template_sandbox
from varco_runtime.prompt.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "x"}]
BIG = "{% set s = 'a' * 2000000 %}"
PATH = "{% set path = '0' ~ '.0' * 20000 %}{% set l = ['0'] * 20000 %}"
DEEP = "{% set n = namespace(x=1) %}{% for i in range(5000) %}{% set n.x = (n.x,) %}{% endfor %}"
BY_ATTRIBUTE = ("sort", "min", "max", "unique", "groupby", "map")
FOR = "{% for a in range(9999) %}"

REFUSED = {
    # What folds while it is compiled, or multiplies in one operation.
    "{{ 9**(9**9) }}": "a power of more than 64",
    "{{ 'a' * 3000000000 }}": "a value of more than",
    "{{ 7**(7**8) }}": "a power of more than 64",
    "{{ 1 | round(10**7, 'ceil') }}": "rounding to more than 16 places",
    "{{ 1 | round(-10**7) }}": "rounding to more than 16 places",
    "{{ (1).to_bytes(10**9, 'big') }}": "access to attribute 'to_bytes'",
    # What compares each character with each.
    BIG + "{{ s | trim('b' * 1999999 + 'a') }}": "more work than",
    BIG + "{{ s.strip('b' * 1999999 + 'a') }}": "more work than",
    BIG + "{{ s.rfind('b' ~ 'a' * 999999) }}": "more work than",
    BIG + "{{ s.rsplit('b' ~ 'a' * 999999) }}": "more work than",
    BIG + "{{ s.rsplit(sep='b' ~ 'a' * 999999) }}": "more work than",
    BIG + "{{ s.rpartition('b' ~ 'a' * 999999) }}": "more work than",
    # What a filter does for each item.
    "{% set s = 'a' * 9999 %}{{ range(9999) | map('replace', '', s) | list }}": "more work than",
    "{{ range(9999) | map('string') | map('replace', '', 'a' * 999999) | list }}": "more work than",
    **{PATH + f"{{{{ l | {name}(attribute=path) | list }}}}": "more work than" for name in ("sort", "min", "max")},
    **{
        PATH + f"{{{{ l | {name}(attribute=path) | list }}}}": "more work than" for name in ("unique", "groupby", "map")
    },
    PATH + "{{ l | selectattr(path) | list }}": "more work than",
    PATH + "{{ l | join(attribute=path) }}": "more work than",
    # What walks a value by recursion, or looks one up.
    DEEP + "{{ {n.x: 1} }}": "lists in lists, more than 32 deep",
    DEEP + "{{ n.x | tojson(indent=8) }}": "lists in lists, more than 32 deep",
    "{% set t = (1,) * 99999 %}{% set d = {} %}" + "{{ d[t] }}" * 999: "more work than",
    # What costs little, very often.
    FOR * 2 + "{{ messages[0].role[1:] }}" + "{% endfor %}" * 2: "more work than",
    "{% macro m() %}{% endmacro %}" + FOR * 2 + "{{ m() }}" + "{% endfor %}" * 2: "more work than",
}

COMPILED = {
    "sets and ifs": "".join(f"{{% set a{number} = 1 %}}" for number in range(5000)) + "{% if a %}{% endif %}" * 6000,
    "names": "{{ a }}" * 20_000,
    "nested": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "chain": "{{ a" + " + a" * 20_000 + " }}",
    "filters": "{{ a" + " | trim" * 9000 + " }}",
    "parentheses": "{{ " + "(" * 50_000 + " }}",
    "block": "{% block b %}{{ self.b() }}{% endblock %}",
}


@pytest.fixture(autouse=True)
def _no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_S", 1e9)
    monkeypatch.setattr(template_sandbox, "WORK", 1 << 24)  # an eighth, for the time of the tests


@pytest.mark.parametrize("template", REFUSED, ids=lambda text: text[-60:])
def test_a_template_that_costs_much_is_refused_before_it_does(template: str) -> None:
    with pytest.raises(PromptError) as caught:
        ChatTemplate(template).render(MESSAGES, True)
    assert REFUSED[template] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMPILED)
def test_a_template_that_is_large_or_deep_is_refused_before_it_is_compiled(name: str) -> None:
    with pytest.raises(BundleError, match="The chat template cannot be used"):
        ChatTemplate(COMPILED[name])


ESCAPES = [
    "''.__class__", "''['__class__']", "''|attr('__class__')", "namespace().__class__", "namespace()._Namespace__attrs",
    "namespace()['__class__']", "messages.__init__", "messages.append", "messages.sort", "messages[0].update",
    "messages[0].pop", "range.__init__", "dict.fromkeys", "dict.mro", "raise_exception.__globals__", "m.__code__",
    "m.arguments", "1.0.fromhex", "(1).from_bytes", "''.encode", "''.translate", "''.zfill", "''.expandtabs",
    "['']|map(attribute='__class__')|first", "''.format", "''.format_map", "loop.__class__", "self.__class__",
]  # fmt: skip


@pytest.mark.parametrize("expression", ESCAPES)
def test_nothing_is_reached_that_is_not_listed(expression: str) -> None:
    with pytest.raises(PromptError, match=r"unsafe|not offered|undefined|has no (attribute|element)"):
        ChatTemplate("{% macro m() %}{% endmacro %}{{ (" + expression + ")() }}").render(MESSAGES, True)


def test_dead_code_costs_nothing() -> None:
    for dead in ("9**(9**9)", "'a' * 3000000000", "7**(7**8)"):
        assert ChatTemplate(f"{{% if false %}}{{{{ {dead} }}}}{{% endif %}}ok").render(MESSAGES, True) == "ok"


def test_texts_that_are_kept_take_bounded_memory() -> None:
    template = "{% set s = '\U0001f600' * 1900000 %}" + "".join(f"{{% set a{n} = s[1:] %}}" for n in range(200))
    tracemalloc.start()
    try:
        with pytest.raises(PromptError, match="more work than"):
            ChatTemplate(template).render(MESSAGES, True)
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dead", ["9**(9**9)", "'a' * 3000000000", "7**(7**8)"])
def test_an_export_evaluates_nothing_of_a_template_that_is_never_rendered(dead: str, tmp_path: Path) -> None:
    template = f"{{% if false %}}{{{{ {dead} }}}}{{% endif %}}" + TEXT_TEMPLATE
    assert load(checkpoint(tmp_path, chat_template__jinja=template)).chat_template == template


def test_an_export_refuses_what_a_bundle_would(tmp_path: Path) -> None:
    for template in ("{{ 9**(9**9) }}", COMPILED["parentheses"]):
        with pytest.raises(CheckpointError, match="The chat template"):
            load(checkpoint(tmp_path, chat_template__jinja=template))


TURNS = [{"role": "user", "content": "hi\n"}, {"role": "assistant", "content": "<think>x</think>\nbye"}]
USED_BY_TEMPLATES = {  # what the templates of well-known models do, and what it gives
    "{% set ns = namespace(a=0) %}{% for m in messages %}{% set ns.a = loop.index0 %}{% endfor %}{{ ns.a }}": "1",
    "{{ messages[::-1][0].content.split('</think>')[-1].lstrip('\\n') }}": "bye",
    "{{ messages[0]['content'].rstrip('\\n').startswith('hi') }}": "True",
    "{{ messages[1].content.rpartition('</think>')[2] }}": "\nbye",
    "{{ messages | map(attribute='role') | unique | sort | join(',') }}": "assistant,user",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}": "1",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | trim }};{% endfor %}": "role=user;content=hi;",
    "{{ messages[0] | dictsort | tojson }}": '[["content", "hi\\n"], ["role", "user"]]',
    "{% if messages[0].get('tools') is not none and tools is defined %}1{% else %}2{% endif %}": "2",
    "{% macro m(a, b=2) %}{{ a ~ b }}{{ caller() if caller }}{% endmacro %}{{ m('x') }}": "x2",
    "{% for r, g in messages | groupby('role') %}{{ r }}{{ g | length }}{% endfor %}": "assistant1user1",
    "{{ 2.567 | round(1) }} {{ 7 // 2 }} {{ 'a,b'.split(',') | last }}": "2.6 3 b",
    "{% for m in messages if m.role == 'user' %}{{ loop.previtem is undefined }}{{ loop.length }}{% endfor %}": "True1",
    "{{ messages[0] | tojson(indent=2) }}": '{\n  "role": "user",\n  "content": "hi\\n"\n}',
}


@pytest.mark.parametrize("template", USED_BY_TEMPLATES)
def test_what_templates_do_is_done(template: str) -> None:
    assert ChatTemplate(template).render(TURNS, True) == USED_BY_TEMPLATES[template]


def test_a_special_token_beyond_the_basic_plane_stays_whole(tmp_path: Path) -> None:
    token = '<\U0001f600|é"\\>'
    config = {"eos_token": "<|im_end|>", "own_token": token, "chat_template": TEXT_TEMPLATE + "{{ own_token }}"}
    assets = load(checkpoint(tmp_path, tokenizer_config__json=config))
    rendered = ChatTemplate(assets.chat_template).render([{"role": "user", "content": "x"}], False)
    assert rendered.endswith(token)
    assert json.loads(assets.tokenizer_json)["added_tokens"][-1]["content"] == token
