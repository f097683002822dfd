r"""opsin's chat templates as the Jinja text that a Hugging Face directory carries, and back.

A directory's template is recognised by its exact text, apart from the texts in its first two lines; any other is not
interpreted. No Jinja is ever run here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.json_files import read_json
from opsin.core.errors import ModelError
from opsin.text.templates import (
    AfterPicture,
    ChatML,
    FromTokenizer,
    Llama2,
    Llama3,
    Mistral,
    Plain,
    Template,
    VicunaV1,
)

ChatTemplate = VicunaV1 | Mistral | Llama2 | Llama3 | ChatML
"""The templates that can be written."""

IMAGE_TAGS = ("<Image>", "</Image>")
TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1_000_000

_SYSTEM = """\
{%%- set system = %s %%}
{%%- set before, after = %s, %s %%}
{%%- if messages[0].role == 'system' %%}
{%%- set system = messages[0].content if messages[0].content is string else messages[0].content[0].text %%}
{%%- set messages = messages[1:] %%}
{%%- endif %%}
"""
_PARTS = """\
{%- macro parts(content) %}
{%- if content is string %}{{- content }}{% else %}
{%- for part in content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}{{- before + 'IMAGE' + after }}
{%- elif part.type == 'video' or 'video' in part %}{{- before + 'VIDEO' + after }}
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
_MISTRAL = """\
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST] ' }}
{%- if loop.first and system %}{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- endif %}
{{- parts(message.content) }}{{- ' [/INST]' }}
{%- else %}{{- ' ' }}{{- parts(message.content) }}{{- ' </s>' }}{%- endif %}
{%- endfor %}
"""
_LLAMA_2 = _MISTRAL.replace("{{- '[INST] ' }}", "{%- if not loop.first %}{{- '<s>' }}{%- endif %}{{- '[INST] ' }}")
_LLAMA_3 = """\
{%- macro header(role) %}{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- if system is not none %}{{- header('system') + system + '<|eot_id|>' }}{%- endif %}
{%- for message in messages %}
{{- header(message.role) }}{{- parts(message.content) }}{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}
"""
LITERAL = r'none|"(?:[^"\\\n]|\\.)*"'
"""What stands for a text in the first two lines: JSON, which Jinja reads as the same string."""


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
    if isinstance(template, FromTokenizer):
        raise ModelError(
            "template 'tokenizer' has no place for pictures in its Jinja text, so transformers could not be asked as "
            "this model is; export a model of one of opsin's chat templates"
        )
    if isinstance(template, ChatML) and template.number_media:
        raise ModelError("the Jinja text that opsin writes does not number pictures; export without number_media")
    before, after = _around(template)
    system = None if isinstance(template, Mistral) else template.system
    lines = _SYSTEM % tuple(map(_literal, (system, before, after + template.after_picture)))
    return lines + _rest(template, family)


def told(template: Template) -> Template:
    """What a directory tells of a template: all but what training learns of it."""
    return template.model_copy(update={"labels": "answer_only"}) if isinstance(template, ChatML) else template


def _around(template: ChatTemplate) -> tuple[str, str]:
    if isinstance(template, ChatML) and template.around_picture is not None:
        return template.around_picture
    return IMAGE_TAGS if isinstance(template, VicunaV1) and template.image_tags else ("", "")


def _rest(template: ChatTemplate, family: Family) -> str:
    """All lines but the first two, which alone depend on a template's texts."""
    image, video = media_tokens(family)
    bodies = {VicunaV1: _VICUNA, Mistral: _MISTRAL, Llama2: _LLAMA_2, Llama3: _LLAMA_3, ChatML: _CHATML}
    body = bodies[type(template)]
    if isinstance(template, ChatML) and not template.after_mark:
        body = body.replace("<|im_end|>\\n", "<|im_end|>")
    return _PARTS.replace("IMAGE", image).replace("VIDEO", video) + body


def read_template(folder: Path) -> Template | None:
    """The template of a directory, where its text is one that opsin writes; None for any other, or none.

    Raises:
        CheckpointError: a file that may hold it is not JSON.
    """
    text = _text(folder)
    if text is None:
        return None
    slots = re.escape(_SYSTEM.replace("%%", "%")).replace("%s", f"({LITERAL})")
    found = re.match(slots, text)
    if found is None:
        return None
    system, before, after = (None if value == "none" else _string(value) for value in found.groups())
    gap: AfterPicture = "\n" if (after or "").endswith("\n") else ""
    around = (before, (after or "").removesuffix("\n")) if before else None
    given: tuple[Template, ...] = (
        Mistral(after_picture=gap),
        ChatML(system=system, around_picture=around, after_picture=gap),
        ChatML(system=system, around_picture=around, after_mark="", after_picture=gap),
        Llama3(system=system, after_picture=gap),
    )
    if system is not None:
        tagged = around == IMAGE_TAGS
        given += (VicunaV1(system=system, image_tags=tagged, after_picture=gap),)
        given += (Llama2(system=system, after_picture=gap),)
    families: tuple[Family, ...] = ("llava", "qwen2_vl")
    return next((one for one in given for family in families if jinja(one, family) == text), None)


def _literal(text: str | None) -> str:
    return "none" if text is None else json.dumps(text, ensure_ascii=False)


def _string(literal: str) -> str | None:
    """The text of a literal, None for what is no JSON (`jinja` of it is then another text)."""
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


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
