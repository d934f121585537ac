"""What the daemon answers, held to what it says of itself: every answer to its operation in GET /openapi.json.

The status must be one of the operation, the content type one of that status, and JSON must have its schema. Schemas are taken
strictly here, so that a member that no table lists is found as well as one that is missing; the document itself leaves objects open.
Needs jsonschema (Debian: python3-jsonschema); without it nothing is checked, and e2e_contract is skipped.
"""

import copy
import json
import re

try:
    import jsonschema
except ImportError:
    jsonschema = None


def closed(schema):
    """Objects that list their members have no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


class Contract:
    def __init__(self, document):
        self.document = document
        self.components = {"schemas": closed(copy.deepcopy(document["components"]["schemas"]))}
        for name in ("Problem",):  # some have members of their own, as next_offset
            self.components["schemas"][name].pop("additionalProperties", None)
        self.paths = []
        for template, item in document["paths"].items():
            pattern = re.sub(r"\\{(\w+)\\}", lambda m: ".+" if m.group(1) in ("path", "asset") else "[^/]+", re.escape(template))
            self.paths.append((re.compile(pattern + "$"), item))
        self.validators = {}

    def operation(self, method, path):
        """The operation's description, None where the path has none of that method, or no such path."""
        for pattern, item in self.paths:
            if pattern.match(path):
                return item.get("get" if method == "HEAD" else method.lower())
        return None

    def errors(self, schema, value):
        key = json.dumps(schema, sort_keys=True)
        if key not in self.validators:
            self.validators[key] = jsonschema.Draft202012Validator(dict(closed(schema), components=self.components))
        return ["%s: %s" % (error.json_path, error.message[:300]) for error in self.validators[key].iter_errors(value)]

    def faults(self, method, target, status, content_type, body):
        """What is wrong with an answer, as a list of sentences."""
        operation = self.operation(method, target.split("?")[0])
        if operation is None:
            return [] if status in (400, 403, 404, 405, 414) else ["status %d for a path without such an operation" % status]
        response = operation["responses"].get(str(status))
        if response is None:
            return ["status %d is not one of %s" % (status, ", ".join(operation["responses"]))]
        content = response.get("content", {})
        kind = (content_type or "").split(";")[0]
        if not content or method == "HEAD" or status == 304:
            return ["a body where there is none: %r" % body[:100]] if body else []
        if kind not in content:
            return ["Content-Type %r is not one of %s" % (content_type, ", ".join(content))]
        if (kind == "application/json" or kind.endswith("+json")) and status != 206 and content[kind]["schema"]:
            return self.errors(content[kind]["schema"], json.loads(body))
        return []
