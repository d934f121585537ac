"""Chat templates against jinja2, set up as transformers does it.

The templates are written here in the manner of published ones: each uses the constructs of its family's. Then small pieces of Jinja, most
of them one expression, for the rules between: white space around tags, printing, slices, scopes, precedence. Where jinja2 raises an
error there must be one here, and what jinja2 renders must be the same text or be refused as not supported, which the lists say.
"""

import datetime
import json
import os
import pathlib
import re
import subprocess

import pytest

transformers = pytest.importorskip("transformers")
from transformers.utils import chat_template_utils  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = pathlib.Path(os.environ.get("QUANTD_BUILD_DIR", ROOT / "build")) / "tests/tools/quantd-chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


@pytest.fixture(autouse=True)
def fixed_day(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Day)


def ours(folder, template, batch):
    path = folder / "template.jinja"
    path.write_bytes(template.encode())
    lines = "".join(json.dumps(v) + "\n" for v in batch)
    done = subprocess.run([TOOL, path], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(template, variables):
    try:
        return chat_template_utils._compile_jinja_template(template).render(**variables)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def check(folder, template, batch):
    for variables, got in zip(batch, ours(folder, template, batch), strict=True):
        want = theirs(template, variables)
        assert got == want or (isinstance(got, dict) and isinstance(want, dict)), (template, variables, got, want)


def user(text):
    return {"role": "user", "content": text}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of \"today\" <now> & 'here'\n日本",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city", "enum": ["Bonn", "Köln"]},
                "days": {"type": "integer", "default": 3},
                "ratio": {"type": ["number", "null"], "description": "x"},
                "list": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bonn", "days": 2, "x": None, "y": 1.5e-7}}}
CHATS = [
    [user("Hello")],
    [{"role": "system", "content": " Be brief.\n"}, user("  Hi there \n"), {"role": "assistant", "content": "Hello! \t"}, user("Bye")],
    [user("Weather?"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "{\"t\": 3}"}, {"role": "assistant", "content": "3 degrees."}],
    [user("2+2?"), {"role": "assistant", "content": "<think>\nlong\n</think>\n\n4", "reasoning_content": "long"}, user("3+3?"),
     {"role": "assistant", "content": "<think>a</think>6"}],
    [user([{"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": "日本語 é \U0001f600"}])],
    [user("a"), user("b")],
    [{"role": "assistant", "content": "first"}],
    [{"role": "developer", "content": "x"}, user("line\r\nline\u2028\x0b end\u3000")],
    [],
]  # fmt: skip
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama3": """
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- System message, if there is one #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' + arg_val + '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
        {%- else  %}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "llama4": """{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif content['type'] == 'text' %}
                {{- content['text'] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- "<|eot|>" }}
{%- endfor %}
{%- if messages[0]['content'] is not string %}
    {%- set first = messages[0]['content']|selectattr('type', 'equalto', 'text')|map(attribute='text')|map('trim')|join('\\n') %}
    {{- first }}
{%- endif %}
""",
    "mistral v3": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Alternation #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ message["content"] ~ "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + "}" }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "qwen3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "gpt-oss": """{#-
  Types as TypeScript
#}
{%- macro render_typescript_type(param_spec, required_params, is_nullable=false) -%}
    {%- if param_spec.type == "array" -%}
        {%- if param_spec['items'] -%}
            {%- if param_spec['items']['type'] == "string" -%}
                {{- "string[]" }}
            {%- else -%}
                {%- set inner_type = render_typescript_type(param_spec['items'], required_params) -%}
                {{- inner_type + "[]" }}
            {%- endif -%}
            {%- if param_spec.nullable -%}
                {{- " | null" }}
            {%- endif -%}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
    {%- elif param_spec.type is defined and param_spec.type is iterable and param_spec.type is not string and param_spec.type is not mapping and param_spec.type[0] is defined -%}
        {%- if param_spec.type | length > 1 -%}
            {{- param_spec.type | join(" | ") }}
        {%- else -%}
            {{- param_spec.type[0] }}
        {%- endif -%}
    {%- elif param_spec.type == "string" -%}
        {%- if param_spec.enum -%}
            {{- '"' + param_spec.enum|join('" | "') + '"' -}}
        {%- else -%}
            {{- "string" }}
        {%- endif -%}
    {%- elif param_spec.type == "integer" -%}
        {{- "number" }}
    {%- else -%}
        {{- "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro render_tool_namespace(namespace_name, tools) -%}
    {{- "## " + namespace_name + "\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\n" }}
        {{- "type "+ tool.name + " = " }}
        {%- if tool.parameters and tool.parameters.properties %}
            {{- "(_: {\\n" }}
            {%- for param_name, param_spec in tool.parameters.properties.items() %}
                {%- if param_spec.description %}
                    {{- "// " + param_spec.description + "\\n" }}
                {%- endif %}
                {{- param_name }}
                {%- if param_name not in (tool.parameters.required or []) -%}
                    {{- "?" }}
                {%- endif -%}
                {{- ": " }}
                {{- render_typescript_type(param_spec, tool.parameters.required or []) }}
                {%- if param_spec.default is defined -%}
                    {%- if param_spec.enum %}
                        {{- ", // default: " + param_spec.default }}
                    {%- else %}
                        {{- ", // default: " + param_spec.default|tojson }}
                    {%- endif -%}
                {%- endif -%}
                {%- if not loop.last %}
                    {{- ",\\n" }}
                {%- else %}
                    {{- ",\\n" }}
                {%- endif -%}
            {%- endfor %}
            {{- "}) => any;\\n\\n" }}
        {%- else -%}
            {{- "() => any;\\n\\n" }}
        {%- endif -%}
    {%- endfor %}
    {{- "} // namespace " + namespace_name }}
{%- endmacro -%}
{%- macro build_system_message() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are a large language model." %}
    {%- endif %}
    {{- model_identity + "\\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\\n\\n" }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{{- build_system_message() }}
{{- "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|start|>developer<|message|>" }}
    {{- developer_message }}
    {%- if tools -%}
        {{- render_tool_namespace("functions", tools) }}
    {%- endif -%}
    {{- "<|end|>" }}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and ("<|channel|>analysis<|message|>" in message.content) -%}
            {{- raise_exception("You have passed a message containing <|channel|> tags in the content field.") }}
        {%- endif -%}
        {%- if "tool_calls" in message -%}
            {%- set future_final_message = namespace(found=false) -%}
            {%- for future_message in loop_messages[loop.index:] -%}
                {%- if future_message.role == 'assistant' and "tool_calls" not in future_message -%}
                    {%- set future_final_message.found = true -%}
                {%- endif -%}
            {%- endfor -%}
            {%- set tool_call = message.tool_calls[0] -%}
            {%- if tool_call.function -%}
                {%- set tool_call = tool_call.function -%}
            {%- endif -%}
            {{- "<|start|>assistant to=" }}
            {{- "functions." + tool_call.name + "<|channel|>commentary " }}
            {{- (tool_call.content_type if tool_call.content_type is defined else "json") + "<|message|>" }}
            {{- tool_call.arguments|tojson }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt -%}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else -%}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none -%}
            {{- raise_exception("Message has tool role, but there was no previous assistant message with a tool call!") }}
        {%- endif -%}
        {{- "<|start|>functions." + last_tool_call.name }}
        {{- " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
""",
    "deepseek v3": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```' + '<｜tool▁call▁end｜>'}}{%- set ns.is_first = true -%}{%- endif %}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜>' + message['content']}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}""",
    "phi": "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "glm": """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>
{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user_index = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '\\n<think>' + reasoning_content.strip() +  '</think>'}}
{%- else -%}
{{ '\\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if m.content is string -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\\n<tool_response>\\n' }}
{{- m.content }}
{{- '\\n</tool_response>' }}
{%- endif -%}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}
""",
    "granite": """{%- set tools_system_message_prefix = 'You are a helpful assistant with access to tools.\\n<tools>' %}
{%- set g4_default_system_message = 'You are a helpful assistant.' %}
{%- if documents %}
    {%- for document in documents %}
        {{- document | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(system_message='', tools_text='') %}
{%- if tools %}
    {%- for tool in tools %}
        {%- set ns.tools_text = ns.tools_text ~ '\\n' ~ (tool | tojson) %}
    {%- endfor %}
    {%- set ns.tools_text = tools_system_message_prefix ~ ns.tools_text ~ '\\n</tools>' %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- if messages[0].content is string %}
        {%- set ns.system_message = messages[0].content %}
    {%- elif messages[0].content is iterable %}
        {%- for entry in messages[0].content if entry.type == 'text' %}
            {%- if ns.system_message != '' %}
                {%- set ns.system_message = ns.system_message ~ '\\n' %}
            {%- endif %}
            {%- set ns.system_message = ns.system_message ~ entry.text %}
        {%- endfor %}
    {%- endif %}
{%- else %}
    {%- set ns.system_message = g4_default_system_message %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' ~ ns.system_message ~ ns.tools_text ~ '<|end_of_text|>\\n' }}
{%- for message in messages %}
    {%- set content = namespace(val='') %}
    {%- if message.content is string %}
        {%- set content.val = message.content %}
    {%- else %}
        {%- if message.content is iterable %}
            {%- for entry in message.content %}
                {%- if entry.type== 'text' %}
                    {%- if content.val != '' %}{%- set content.val = content.val ~ '\\n' %}{%- endif %}
                    {%- set content.val = content.val ~ entry.text %}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
    {%- endif %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val + '<|end_of_text|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val }}
        {%- generation %}{{- '|' + content.val }}{% endgeneration %}
        {{- '<|end_of_text|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}
""",
    "smollm3": """{# defaults #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- else -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
{{- "Knowledge Cutoff Date: June 2025\\nToday Date: " ~ today ~ "\\n" -}}
{{- (custom_instructions if custom_instructions is defined and custom_instructions else "You are helpful.") ~ "\\n\\n" -}}
{%- if xml_tools or python_tools or tools -%}
  {{- "### Tools\\n\\n" -}}
  {%- set ns = namespace(xml_tool_string="<tools>\\n") -%}
  {%- for tool in (xml_tools or tools)[:2] -%} {# keep it short #}
    {%- set ns.xml_tool_string = ns.xml_tool_string ~ (tool | string) ~ "\\n" -%}
  {%- endfor -%}
  {{- ns.xml_tool_string + "</tools>" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {%- generation -%}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {%- endgeneration -%}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\\n"  + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
""",
    "command": """{{ bos_token }}{% if documents %}{% set tools = [] %}{% endif %}
{%- macro document_turn(documents) -%}
{# Documents #}
[{% for doc in documents %}{{ loop.index0 }}: {{ doc.title|default('none', true) }}{% if not loop.last %}, {% endif %}{% endfor %}]
{%- endmacro %}
{%- macro json_parameters(tool) -%}
{%- for name, spec in tool.function.parameters.properties|dictsort(reverse=true) %}
  {{ name|upper }}: {{ spec.type|string|lower }}{{ ", " if not loop.last }}
{%- endfor %}
{%- endmacro %}
{%- if tools %}{% for tool in tools %}{{ json_parameters(tool)|indent(2, true) }}{% endfor %}{% endif %}
{%- if documents %}{{ document_turn(documents) }}{% endif %}
{%- for message in messages|rejectattr('role', 'in', ['tool']) %}
{% if message.role|lower == 'system' %}<|SYSTEM_TOKEN|>{{ message.content }}{% else %}<|{{ message.role|upper }}_TOKEN|>{{ message.content|string|trim }}{% endif %}<|END_OF_TURN_TOKEN|>
{%- endfor %}
{%- if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}""",
}
VARIANTS = [
    {},
    {"add_generation_prompt": True, "tools": [WEATHER], "enable_thinking": False},
    {"tools": [WEATHER, WEATHER], "tools_in_user_message": False, "builtin_tools": ["get_weather"]},
    {"documents": [{"title": "T", "text": "x"}, {"text": "é"}], "date_string": "1 Jan 2025", "reasoning_effort": "high"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(tmp_path, name):
    base = {"tools": None, "documents": None, "add_generation_prompt": False, **TOKENS}
    batch = [{**base, **variant, "messages": chat} for chat in CHATS for variant in VARIANTS]
    check(tmp_path, TEMPLATES[name], batch)
    texts = [t for t in ours(tmp_path, TEMPLATES[name], batch) if isinstance(t, str)]
    assert len(texts) > len(batch) // 4  # it is not errors that are equal
    assert not [t for t in ours(tmp_path, TEMPLATES[name], batch) if isinstance(t, dict) and "not supported" in t["error"]]


VALUES = {
    "s": "Hello, World", "e": "", "u": " é日本\U0001f600\t", "q": "it's \"x\"\n\x07\u200b", "n": 7, "z": 0, "f": 2.5, "g": 1e22, "h": 0.1, "t": True, "no": None,
    "l": [3, 1, 2], "m": ["b", "A", "c"], "d": {"b": 1, "a": [1, {"x": None}], "items": 5, "1": True}, "o": [{"k": "x", "v": {"w": 1}}, {"k": "y"}, {"v": 3}], "nest": [[1, "a"], [2, "b"]],
    "lines": "a\nb\n\n  c\r\nd", "csv": "a,b,,c", "w": "  x y  z ",
}  # fmt: skip
EXPRESSIONS = """s|length  u|length  l|length  d|length  x|length  n|length  s[0] s[-1] s[99] u[1:3] u[::-1] s[1:8:2] s[::-2] l[::-1] l[-2:] l[5:] l[:0] l[1] l[9] l['a'] d['b'] d.b d['zz'] d.zz
d.items d['items'] d.get('b') d.get('q') d.get('q', 3) d.items() d.keys()|list d.values()|list d|items|list x.y x['y'] no.y no['y'] n.y s.y o[0].v.w o[1].v.w
1+2 1-2 3*4 7/2 7//2 -7//2 -7%3 7%-3 7.5//2 -7.5%2 2**10 2**0.5 1/0 1//0 1%0 f+1 f*2 n/f 's'+'t' 's'+1 1+'s' l+[4] l+m 'ab'*3 3*'ab' l*2 'a'~1~none~true~f~l
1==1.0 true==1 'a'=='a' l==[3,1,2] d=={} no==none x==y x==none 1<2<3 1<3<2 'a'<'b' 'a'<1 l<m 1!=2 'a'in'cat' 'A'in'cat' 1 in l 4 not in l 'b'in d 9 in d 'x'in x x in l none in l 1 in n
not x  not s  not e  not 0 x and y  s and e  e or s  x or 'd'  z or none  1 if t else 2  1 if z else 2  1 if z  'a' if z else 'b' if e else 'c'
x is defined s is defined x is undefined no is none x is none s is string n is string d is mapping l is mapping l is iterable s is iterable n is iterable x is iterable no is iterable d is sequence n is number f is number t is number t is integer n is integer
f is float t is boolean t is true z is false no is false n is odd n is even n is divisibleby 7 n is divisibleby(2) n is eq 7 n is equalto(8) n is gt 3 n is in l s is not string range is callable s is sameas s t is sameas true
s|upper s|lower s|title s|capitalize 'hello wOrld-foo (bar'|title u|upper s.upper() 'hello wOrld-foo x1y'.title() s.lower() 'ABC dEF'.capitalize() 'straße'|upper u|trim w|trim w.strip() w.lstrip() w.rstrip() 'xxaxx'.strip('x') 'xyaxy'.lstrip('yx') s|trim('Hd')
csv.split(',') csv.split(',',1) csv.split(',')[-1] csv.rsplit(',',1) csv.rsplit(',',2) csv.rsplit(',') csv.rsplit(',',9) w.split() w.split(none,1) w.split(' ') ''.split() ''.split(',') csv.split('') 'aXXbXXc'.split('XX',1) lines.splitlines() lines|indent lines|indent(2) lines|indent(2,true) lines|indent(width=3,blank=true) lines|indent('>')
s.startswith('He') s.startswith(('x','He')) s.endswith('ld') s.startswith(1) s.replace('l','L') s.replace('l','L',1) s.replace('','-') u.replace('日','') s|replace('o','0') s|replace('o','0',1) n|replace('7','8') s.find('o') s.rfind('o') u.find('本') s.find('zz') s.index('zz') s.count('l') 'aaa'.count('aa') 'aaa'.rfind('aa')
s.removeprefix('Hel') s.removesuffix('ld') s.removeprefix('x') '12'.isdigit() ''.isdigit() 'a1'.isalpha() 'aB'.isupper() 'AB1'.isupper() ' '.isspace() ','.join(m) ','.join(l) ','.join('abc')
l|join l|join(', ') m|join('-') o|join(',',attribute='k') o|map(attribute='k')|list o|map(attribute='k',default='-')|join o|map(attribute='v.w')|list m|map('upper')|join(' ') m|map('replace','b','c')|list l|map('string')|list l|first l|last e|first []|first l|list s|list d|list x|list n|list
o|selectattr('k')|list o|selectattr('k','equalto','x')|list o|rejectattr('k','equalto','x')|list o|selectattr('k','defined')|list o|selectattr('v.w','defined')|list l|select('gt',1)|list l|reject('odd')|list l|select|list m|sort m|sort(reverse=true) l|sort o|selectattr('k','defined')|sort(attribute='k',reverse=true)
['b','a','B','A']|sort ['b','a','B','A']|sort(case_sensitive=true) ['a','A','b']|unique|list l|max l|min []|max m|max l|sum o|sum(attribute='n') l|reverse|list s|reverse d|dictsort {'b':1,'A':2,'a':3}|dictsort {'b':1,'A':2}|dictsort(by='value') {'b':1,'a':2}|dictsort(reverse=true)
d|tojson l|tojson s|tojson q|tojson u|tojson no|tojson t|tojson f|tojson g|tojson h|tojson x|tojson d|tojson(indent=2) []|tojson(indent=2) {}|tojson(indent=2) l|tojson(indent=0) u|tojson(ensure_ascii=true) q|tojson(true) d|tojson(separators=(',',':')) d|tojson(sort_keys=true) {1:2,none:3,true:4}|tojson (1,2)|tojson
d l q [q] [u] {'k':q} (1,2) (1,) () [none,true,false] f g h 1.0 100000000000000000000.0 0.00001 1e5 123456789012345.0 no t x [x] {} [] nest
n|string|length f|int '12'|int ' 12 '|int 'x'|int 'x'|int(5) '1.7'|int none|int x|int(2) '1.5'|float 'x'|float n|float true|int -5|abs (-5)|abs 3.5|abs s|default('q') x|default('q') x|default e|default('q') e|default('q',true) x|d(1) no|default('q') x.y|default('z') s|safe
range(3)|list range(1,4)|list range(5,0,-2)|list range(0)|list dict(a=1) dict(d,z=2) namespace(a=1).a namespace(a=1).b 'a' 'b' 'a\\n\\t\\'\\x41\\u00e9\\d' "it's" -n +n --n not not t (1,2)[0] [1,2][-1] {'a':{'b':1}}.a.b n.real s.foo() x() s() n|foo s is foo foo(1) l.append(4) d.update({}) d.pop('b') '%s'%s s.format(1) s|batch(2) joiner()
s|upper|lower -1|abs 2*3+4 2+3*4 10-2-3 2**3**2 -2**2 1 - -1 not 1==2 'a'~'b'in'xaby' 1 if 0 else 2 if 0 else 3 (s|length)+1 s|length+1 s|length>3 not s|length n is odd and t l[0]+l[1] d['a'][1]['x'] d.a[1].x d.a.1.x o.0.k m[n-6] l[-n:] l[:-1]|join s[:n] strftime_now('%d %b %Y') strftime_now('%Y-%m-%d') strftime_now('%H:%M') strftime_now('%A, %B %d, %Y')"""
WORDS_APART = {"and", "or", "not", "in", "is", "if", "else"}


def expressions():
    """Two spaces or a line's end between expressions where one has spaces, else one space: take them apart by brackets and operators."""
    for line in EXPRESSIONS.splitlines():
        for part in line.split("  "):
            tokens, depth, current, quote = [], 0, "", None
            for c in part:
                quote = (c if quote is None else None if quote == c else quote) if c in "'\"" else quote
                depth += (c in "([{") - (c in ")]}") if quote is None else 0
                if c == " " and depth == 0 and quote is None:
                    tokens.append(current)
                    current = ""
                else:
                    current += c
            tokens.append(current)
            joined = []
            for token in tokens:
                words = joined and (token in WORDS_APART or token in "<>+-" or joined[-1].split(" ")[-1] in WORDS_APART | {"gt", "eq", "divisibleby", "sameas", "-"})
                if words:
                    joined[-1] += " " + token
                else:
                    joined.append(token)
            yield from (j for j in joined if j)


NOT_SUPPORTED = {"2**0.5", "'straße'|upper", "100000000000000000000.0", "1e5", "joiner()", "s|batch(2)", "s.format(1)", "'%s'%s", "s is sameas s",
                 "n.real", "n is foo"}  # fmt: skip


@pytest.mark.parametrize("wrapped", ["{{ %s }}", "{% set r = (%s) %}[{{ r }}]", "{% if (%s) %}yes{% else %}no{% endif %}"])
def test_expressions(tmp_path, wrapped):
    seen, wrong = 0, []
    for expression in expressions():
        template = wrapped % expression if "% " not in wrapped else wrapped.replace("%s", expression)
        got, want = ours(tmp_path, template, [VALUES])[0], theirs(template, VALUES)
        fine = got == want or (isinstance(got, dict) and isinstance(want, dict))
        refused = isinstance(got, dict) and "support" in got["error"] and expression in NOT_SUPPORTED
        lazy = isinstance(want, str) and re.search(r"generator object|dict_(items|keys|values)|iterator object|built-in method", want)
        wrong += [] if fine or refused or (lazy and isinstance(got, dict)) else [(template, got, want)]
        seen += isinstance(got, str)
    assert not wrong
    assert seen > 250


STATEMENTS = [
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "a\n  {% if t %}  \n b\n  {%- endif %}  \nc\n\n", " {%+ if t %} x {%+ endif +%}\ny", "{% if t -%}  \n x {%- endif -%} \n y", "{# c #}\nx{#- c -#}  y\n  {# d #}\nz",
    "  {{ s }}  \n  {{- s -}}  \n {{ n }}\n", "\n\n{{ s }}\n", "a\r\nb\rc\r\n", "{{ '}}' }}{{ '%}' }}{{ {'a': {'b': 1}} }}", "{%- set x = 1 -%}\n\n{{ x }}", "{{ s }}\n{% if z %}x{% endif %}\n{{ s }}", "x{% if t %}\n\n{% endif %}y", "{% if t %}   {% if t %}  x{% endif %}{% endif %}",
    "{% for i in l %}{{ i }}{{ ',' if not loop.last }}{% endfor %}", "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem|default('-') }};{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}", "{% for i in x %}x{% else %}none{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for c in 'añb' %}{{ c }}.{% endfor %}", "{% for a, b in nest %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, b in l %}{{ a }}{% endfor %}", "{% for i in n %}{% endfor %}", "{% for i in l if i > 1 %}{{ loop.index }}/{{ loop.length }}:{{ i }} {% else %}no{% endfor %}", "{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}|",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% for i in l %}{{ y }}{% set y = i %}{{ y }}{% endfor %}{{ y }}", "{% if t %}{% set x = 5 %}{% endif %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set s.x = 1 %}", "{% set a, b = 1, 2 %}{{ b }}{{ a }}",
    "{% set a, b = l %}", "{% set a = 1, 2 %}{{ a }}", "{% set x %} in {{ s }} {% endset %}[{{ x }}]", "{% set x %}{% endset %}[{{ x|length }}]", "{% macro f(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(1, c=5) }}|{{ f(a=9) }}|{{ f() }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(3) }}", "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}", "{% macro f() %}{% set y = 3 %}{{ y }}{% endmacro %}{{ f() }}{{ y }}",
    "{% macro f() -%} a {%- endmacro %}{{ f()|upper }}{{ f() ~ 'x' }}{{ f().strip() }}", "{% macro f() %}{{ s }}{% endmacro %}{% for i in l %}{{ f() }}{% endfor %}", "{% for i in l %}{% macro g() %}{{ i }}{% endmacro %}{{ g() }}{% endfor %}", "{% generation %}{{ s }}{% set y = 1 %}{% endgeneration %}{{ y }}", "{% if s %}a{% elif t %}b{% else %}c{% endif %}",
    "{% if e %}a{% elif z %}b{% elif n %}c{% else %}d{% endif %}", "{% if e %}a{% elif z %}b{% else %}{% if t %}d{% endif %}{% endif %}", "{% if e %}a{% else %}{% if t %}d{% endif %}x{% endif %}", "{{ raise_exception('no') }}", "{% if x.y.z %}{% endif %}", "{{ messages }}", "{{ loop }}x", "{% for m in messages %}{% endfor %}ok", "{{ 'a' 'b' }}", "{{ s, n }}", "{{ s | }}",
    "{% for i in range(3) %}{% for j in range(2) %}{{ i }}{{ j }}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}", "{% set d2 = {'a': 1, 'b': [1, 2], } %}{{ d2.b[-1] }}{{ d2 }}", "{% set l2 = [1, 2, ] + ['x'] %}{{ l2 }}", "{{ [1,\n2]\n}}", "{% if n == 7 and\n t %}y{% endif %}", "{{ d.a[1].x is none }}", "{{ 'x' if d.b is defined and d.b else 'y' }}",
    "{% for o1 in o %}{% if o1.k is defined %}{{ o1.k }}{% endif %}{% endfor %}", "{% set tool = o[0] %}{% for k, v in tool.items() if k != 'v' %}{{ k }}{{ v }}{% endfor %}", "{% if t %}", "{% endif %}", "{% for %}", "{{ }}", "{{ s", "{% foo %}", "{# x", "{{ 'a }}", "{{ s) }}", "{{ (s }}", "{% else %}", "{% set %}", "{% break %}", "{{ l[] }}", "{{ 1 2 }}", "{{ if }}", "{% if s = 1 %}{% endif %}",
    "{% for m in o[::-1] %}{% set i = (o|length - 1) - loop.index0 %}{{ i }}{% endfor %}", "{% set x = none %}{% for i in l %}{% if x is none %}{% set x = i %}{% endif %}{% endfor %}{{ x }}", "{%- for i in l %}\n  {{- i }}\n{%- endfor %}\n", "{{ 'a' if s is string }}{{ 'a' if s is not string }}", "{{- '' -}}", "{{ '\\\\n' }}{{ '\\'' }}", "x {{ 'y' }} {%- if t %} z{% endif %}",
]  # fmt: skip


@pytest.mark.parametrize("template", STATEMENTS)
def test_statements(tmp_path, template):
    got, want = ours(tmp_path, template, [VALUES])[0], theirs(template, VALUES)
    if template in ("{{ l[] }}", "{{ if }}"):  # jinja2 renders nothing
        want = {}
    assert got == want or (isinstance(got, dict) and isinstance(want, dict)), (got, want)


@pytest.mark.parametrize(
    "template,named",
    [("{% raw %}{% endraw %}", 'tag "raw"'), ("\n{% include 'x' %}", 'line 2: the tag "include"'), ("{% call f() %}{% endcall %}", 'tag "call"'), ("{{ s|wordwrap }}", 'filter "wordwrap"'),
     ("{{ s is escaped }}", 'test "escaped"'), ("{{ f(*l) }}", "arguments from a list"), ("{% for i in l recursive %}{% endfor %}", "recursive loop"), ("{{ d.update({}) }}", 'method "update" of a dict'),
     ("{{ strftime_now('%s') }}", "strftime_now with %s"), ("{% for i in l %}{{ loop.cycle(1) }}{% endfor %}", "loop.cycle"), ("{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}", '"caller" is not supported'),
     ("{% with %}{% endwith %}", 'tag "with"'), ("{{ '\\N{DASH}' }}", "escape"), ("{{ 0x10 }}", "number")],
)  # fmt: skip
def test_refused_by_name(tmp_path, template, named):
    got = ours(tmp_path, template, [VALUES])[0]
    assert isinstance(got, dict) and named in got["error"], got
