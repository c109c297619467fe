"""Prompts against transformers: a tiny tokenizer anywhere, the real one where it lies beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.export.config.test_prompts import in_pieces, load
from tests.runtime.prompt import test_hostile_templates as hostile
from varco_export.config.prompts import load_prompts
from varco_runtime.bundle.settings import PromptSettings
from varco_runtime.prompt.chat_template import ChatTemplate
from varco_runtime.prompt.prompter import IMAGE, Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers", reason="the reference needs transformers (extra 'quantize')")
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

HARMLESS = [
    "Describe this image.", "이 물건은 어떻게 쓰는거야?", "뷁 \u1100\u1161\u11a8 ㄱㄴ", "漢字かな交じり文、。",
    "👩‍👩‍👧‍👦🇰🇷 ok", "1234567890 3.14",
    "  a   b \t c ", "\n\nlead", "trail \n \n", "\r\n\r\n", "\x00\x01\x7f", "e\u0301 é \u212b", "I'LL don't",
    "<b> <|x|> [x]",
    "\u3000wide\u00a0space\u2028", "def f(x):\n    return x  # ##\n", "\ufeffbom \ufffd", "ｆｕｌｌ ﬁ", "ا العربية",
    "x" * 500,
]  # fmt: skip

# The two versions of llava-hf's template that FACTS names, A with line breaks and B with spaces.
LLAVA_HF = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + SEP }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{ '<|im_end|>END' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "llava-hf A": LLAVA_HF.replace("SEP", "'\n'").replace("END", "\n"),
    "llava-hf B": LLAVA_HF.replace("SEP", "' '").replace("END", ""),
    "blocks": "  {% for message in messages %}\n    {%- set x = message.content[0].text %}\n"
    "  {{ loop.index }}{{ x }}\n  {% if loop.last %}\n!\n  {% endif %}\n{% endfor %}\n{{ messages | tojson }}",
}
TURNS = [("user", "What? "), ("assistant", "\nThat."), ("user", "이것은 <b>?")]


def rendered_by_transformers(messages: list[dict[str, Any]], template: str) -> str:
    texts = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0]
    return str(texts[0])


def reference_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]
    expected = rendered_by_transformers(messages, TEMPLATES[name])
    assert ChatTemplate(TEMPLATES[name]).render(messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("template", hostile.USED_BY_TEMPLATES)
def test_what_templates_do_is_what_transformers_does(template: str) -> None:
    assert rendered_by_transformers(hostile.TURNS, template) == hostile.USED_BY_TEMPLATES[template]


def test_a_tokenizer_in_pieces_gives_transformers_ids(tmp_path: Path) -> None:
    in_pieces(tmp_path, config__json={"model_type": "qwen2"})
    reference = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_json(load(tmp_path).tokenizer_json)
    assert tokenizer.added_token_ids == reference.added_tokens_encoder
    for text in HARMLESS:
        assert tokenizer.encode_plain(text) == reference_ids(reference, text), text


@pytest.mark.parametrize("name", ["llava-hf A", "llava-hf B"])
def test_llava_hf_prompts_are_transformers_ids(name: str, tmp_path: Path) -> None:
    in_pieces(tmp_path, config__json={"model_type": "qwen2"}, chat_template__jinja=TEMPLATES[name])
    reference = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    assets = load(tmp_path)
    prompter = Prompter(assets.chat_template, assets.prompt, Tokenizer.from_json(assets.tokenizer_json))
    messages = [
        {"role": role, "content": [{"type": "image"}] * (index == 0) + [{"type": "text", "text": text}]}
        for index, (role, text) in enumerate(TURNS)
    ]
    rendered = rendered_by_transformers(messages, TEMPLATES[name])
    ours = [Message(role, (IMAGE, text) if index == 0 else text) for index, (role, text) in enumerate(TURNS)]
    assert prompter.encode(ours, 1) == reference_ids(reference, rendered)


# --- the real tokenizer -----------------------------------------------------------------------------------------------


class Real:
    """VARCO-VISION-14B-HF's tokenizer and template, ours and transformers'."""

    def __init__(self, folder: Path) -> None:
        assets = load_prompts(folder, family="hf", image_token_id=151675, eos_token_id=(151645,), vocab_size=151680)
        self.settings: PromptSettings = assets.prompt
        self.generation = assets.generation
        self.template = assets.chat_template
        self.tokenizer = Tokenizer.from_json(assets.tokenizer_json)
        self.prompter = Prompter(assets.chat_template, assets.prompt, self.tokenizer)
        self.reference = transformers.AutoTokenizer.from_pretrained(folder)
        self.tokenizers_template = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]

    def reference_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        text = rendered_by_transformers(messages, self.template)
        return reference_ids(self.reference, text)


@pytest.fixture(scope="session")
def real(shared: Path) -> Real:
    folder = shared / "models" / "varco-vision-14b-hf"
    if not folder.is_dir():
        pytest.skip("the real tokenizer is not here")
    return Real(folder)


PREFIX = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
SUFFIX = [198, 74785, 419, 2168, 13, 151645, 198, 151644, 77091, 198]


def test_the_cards_prompt_has_its_known_ids(real: Real) -> None:
    assert real.prompter.encode([Message("user", (IMAGE, "Describe this image."))], 2929) == (
        PREFIX + [151675] * 2929 + SUFFIX
    )


def test_the_tokenizers_own_template_gives_the_same_ids(real: Real) -> None:
    settings_ = PromptSettings("<image>", 151675, "string", real.settings.markup_tokens)
    prompter = Prompter(real.tokenizers_template, settings_, real.tokenizer)
    assert prompter.encode([Message("user", (IMAGE, "Describe this image."))], 3) == PREFIX + [151675] * 3 + SUFFIX


def test_the_added_tokens_are_transformers(real: Real) -> None:
    assert real.tokenizer.added_token_ids == real.reference.added_tokens_encoder
    assert real.tokenizer.size == 151676


def test_the_checkpoints_settings_are_read(real: Real) -> None:
    assert (real.settings.content_format, len(real.settings.markup_tokens)) == ("parts", 9)
    assert (real.generation.eos_token_ids, real.generation.repetition_penalty) == ((151645,), 1.0)


@pytest.mark.parametrize(
    "text", [*HARMLESS, "<ocr>", "<gro>\nDescribe", "<obj>이 물건</obj><bbox>0.039, 0.1</bbox>은?"]
)
def test_prompts_are_transformers_ids(real: Real, text: str) -> None:
    content = [{"type": "text", "text": text}, {"type": "image"}]
    assert real.prompter.encode([Message("user", (IMAGE, text))], 1) == real.reference_ids(
        [{"role": "user", "content": content}]
    )


@settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=60))
def test_any_text_without_added_tokens_gives_transformers_ids(real: Real, text: str) -> None:
    expected = real.reference_ids([{"role": "user", "content": [{"type": "text", "text": text}]}])
    assert real.prompter.encode([Message("user", text)], 0) == expected


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 151679), max_size=30))
def test_decoding_is_transformers(real: Real, ids: list[int]) -> None:
    known = [id_ for id_ in ids if id_ < 151676]  # transformers has no word for padding rows
    assert real.tokenizer.decode(ids) == real.reference.decode(known, skip_special_tokens=False)


def test_a_system_message_gives_transformers_ids_and_its_extra_empty_turn(real: Real) -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "안녕?"}]}
    expected = real.reference_ids([{"role": "system", "content": "Be brief."}, user])
    ids = real.prompter.encode([Message("system", "Be brief."), Message("user", "안녕?")], 0)
    assert ids == expected
    assert "<|im_start|>system\n<|im_end|>\n" in real.tokenizer.decode(ids)


def test_a_conversation_gives_transformers_ids(real: Real) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]
    assert real.prompter.encode([Message(*turn) for turn in TURNS], 0) == real.reference_ids(messages)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<image>", "[UNK]", "<|endoftext|>", "<tool_call>"])
def test_a_token_typed_by_the_user_is_plain_text(real: Real, token: str) -> None:
    ids = real.prompter.encode([Message("user", (IMAGE, f"a{token}\n"))], 2)
    harmless = real.prompter.encode([Message("user", (IMAGE, "a"))], 2)
    added = set(real.tokenizer.added_token_ids.values())
    assert [id_ for id_ in ids if id_ in added] == [id_ for id_ in harmless if id_ in added]
