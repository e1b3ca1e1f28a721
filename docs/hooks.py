"""Docstrings in the Hugging Face style, and what metrics tell `evaluate`, as Markdown that mkdocstrings shows."""

import re
from ast import literal_eval

from griffe import Docstring, Extension


SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises|Yields):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
REFERENCE = re.compile(r"\[`(~?)((?:[a-z_]\w*\.)*)([\w.]+)`\](?![\[(])")


class HuggingFaceStyle(Extension):
    def on_package(self, *, pkg, **kwargs):
        objects = [pkg]
        for each in objects:
            objects += [member for member in each.members.values() if not member.is_alias]
        paths = {each.path.removeprefix(f"{each.module.path}."): each.path for each in objects}
        for each in objects:
            if each.is_class and "_DESCRIPTION" in each.module.members:
                texts = [literal_eval(str(each.module[name].value)) for name in ("_DESCRIPTION", "_INPUTS")]
                each.docstring = Docstring("\n".join(texts).strip(), parent=each)
            if each.docstring:
                text = REFERENCE.sub(lambda match: link(*match.groups(), paths), each.docstring.value + "\n")
                each.docstring.value = SECTION.sub(section, re.sub(r"^(?=#\d)", r"\\", text, flags=re.MULTILINE))


def link(short, modules, name, paths):
    code, owner = f"<code>{name if short else modules + name}</code>", name.split(".")[0]
    if owner not in paths or (modules and not modules.startswith("r2f_hf.")):
        return code
    return f'<autoref identifier="{paths[owner]}{name.removeprefix(owner)}" optional>{code}</autoref>'


def section(match):
    title, body = match[1], re.sub(r"^ {4}", "", match[2], flags=re.MULTILINE)
    if title not in ("Returns", "Yields"):  # Items: `name (types):`, `Error`: or, as headings between them, > text
        body = re.sub(r"^(\w+)( \(.+\))?: *", r"- **`\1`**\2: ", body, flags=re.MULTILINE)
        body = re.sub(r"^(?=`)", "- ", re.sub(r"^> (.+)$", r"**\1**", body, flags=re.MULTILINE), flags=re.MULTILINE)
    return body if body.startswith("**") else f"**{title}**\n\n{body}\n"
