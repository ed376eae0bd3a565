from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trtx.errors import VerificationFailed
from trtx.runtime.chat import ChatTemplate, find_template
from trtx.runtime.request import RequestRefused

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: object = USER, **special: str) -> str:
    return ChatTemplate(source, special).render(messages)  # type: ignore[arg-type]


def test_a_template_sees_messages_special_tokens_and_the_wish_for_an_answer() -> None:
    source = "{{ bos_token }}{{ messages[0]['content'] }}{{ add_generation_prompt }}{{ tools is none }}"
    assert render(source, bos_token="<s>") == "<s>hiTrueTrue"


def test_blocks_are_trimmed_and_loops_can_be_left_as_hugging_face_does() -> None:
    source = "  {% for m in messages %}\n{{ m.content }}\n  {% break %}\n{% endfor %}"
    assert render(source, USER * 2) == "hi\n"


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ messages | tojson }}", [{"content": "<é>&"}]) == '[{"content": "<é>&"}]'


def test_marks_for_training_are_passed_over() -> None:
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "hi!"


def test_a_template_can_ask_for_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + none }}", "can only concatenate str"),
        ("{{ messages[5].content }}", "no element 5"),
    ],
)
def test_a_template_that_refuses_or_fails_is_a_refused_request(source: str, reason: str) -> None:
    with pytest.raises(RequestRefused, match=reason) as refused:
        render(source)
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(RequestRefused):
        render(source)


def test_a_template_with_a_syntax_error_is_named_with_its_line() -> None:
    with pytest.raises(VerificationFailed) as failed:
        ChatTemplate("ok\n{% if %}", {})
    assert "line 2" in failed.value.why


def test_the_template_file_wins_over_the_tokenizer_config(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert find_template(tmp_path, {}) is None
    config.write_text(json.dumps({"chat_template": "config"}))
    found = find_template(tmp_path, {})
    assert found is not None
    assert found.render(USER) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    found = find_template(tmp_path, {})
    assert found is not None
    assert found.render(USER) == "file"


def test_of_several_named_templates_the_default_counts_and_with_tools_theirs(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = find_template(tmp_path, {})
    assert found is not None
    assert found.render(USER) == "plain"
    assert found.render(USER, tools=[{"type": "function"}]) == "tools"
    assert found.render(USER, tools=[]) == "plain"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    assert find_template(tmp_path, {}) is None
