r"""opsin's chat templates as the Jinja text that a Hugging Face directory carries, and back.

A directory's template is recognised by its exact text, apart from the system text in its first line; any other is not
interpreted. No Jinja is ever run here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.json_files import read_json
from opsin.core.errors import ModelError
from opsin.text.templates import ChatML, Plain, Template, VicunaV1

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1_000_000

_SYSTEM = """\
{%%- set system = %s %%}
{%%- if messages[0].role == 'system' %%}
{%%- set system = messages[0].content if messages[0].content is string else messages[0].content[0].text %%}
{%%- set messages = messages[1:] %%}
{%%- endif %%}
"""
_PARTS = """\
{%- macro parts(content) %}
{%- if content is string %}{{- content }}{% else %}
{%- for part in content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}{{- 'IMAGE' }}
{%- elif part.type == 'video' or 'video' in part %}{{- 'VIDEO' }}
{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}
{%- endmacro %}
"""
_VICUNA = """\
{%- if system %}{{- system + ' ' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- 'USER: ' }}{{- parts(message.content) }}{{- ' ASSISTANT:' }}
{%- else %}{{- ' ' }}{{- parts(message.content) }}{{- '</s>' }}{%- endif %}
{%- endfor %}
"""
_CHATML = """\
{%- if system is not none %}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}{{- parts(message.content) }}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_MARK = "SYSTEM-TEXT"


def media_tokens(family: Family) -> tuple[str, str]:
    """The tokens that stand for a picture and for a clip in a family's prompts."""
    return ("<|image_pad|>", "<|video_pad|>") if family == "qwen2_vl" else ("<image>", "<video>")


def jinja(template: Template, family: Family) -> str:
    """The template as Jinja, which renders the same text (bar the tokenizer's own opening token).

    Raises:
        ModelError: the template is not for conversations.
    """
    if isinstance(template, Plain):
        raise ModelError("template 'plain' is for captions, not for conversations; export a model of a chat template")
    around = template.around_picture if isinstance(template, ChatML) else None
    before, after = around or ("", "")
    image, video = media_tokens(family)
    parts = _PARTS.replace("IMAGE", before + image + after).replace("VIDEO", before + video + after)
    body = _VICUNA if isinstance(template, VicunaV1) else _CHATML
    return _SYSTEM % _literal(template.system) + parts + body


def read_template(folder: Path) -> Template | None:
    """The template of a directory, where its text is one that opsin writes; None for any other, or none.

    Raises:
        CheckpointError: a file that may hold it is not JSON.
    """
    text = _text(folder)
    if text is None:
        return None
    around = ("<|vision_start|>", "<|vision_end|>")
    kinds: tuple[Template, ...] = (
        VicunaV1(system=_MARK),
        ChatML(system=_MARK),
        ChatML(system=_MARK, around_picture=around),
    )
    families: tuple[Family, ...] = ("llava", "qwen2_vl")
    for kind in kinds:
        for family in families:
            head, _, tail = jinja(kind, family).partition(_literal(_MARK))
            middle = text[len(head) : len(text) - len(tail)]
            if text == head + middle + tail and len(text) >= len(head) + len(tail):
                system = _value(middle)
                if isinstance(system, str) or (system is None and isinstance(kind, ChatML)):
                    return kind.model_copy(update={"system": system})
    return None


def _literal(system: str | None) -> str:
    return "none" if system is None else json.dumps(system)


def _value(literal: str) -> Any:
    if literal == "none":
        return None
    try:
        return json.loads(literal)
    except ValueError:
        return ...


def _text(folder: Path) -> str | None:
    path = folder / TEMPLATE_FILE
    if path.is_file() and path.stat().st_size <= MAX_TEMPLATE_BYTES:
        return path.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            text = read_json(folder / name, 50 * MAX_TEMPLATE_BYTES).get("chat_template")
            if isinstance(text, str):
                return text
    return None
