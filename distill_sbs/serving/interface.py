"""The interface, described for programs: OpenAPI 3.1.

Enters: the options and the student. Leaves: what `/openapi.json` says, and `/docs` shows.
"""

from __future__ import annotations

from distill_sbs.json_lines import JsonObject, JsonValue
from distill_sbs.serving.options import ServeConfig
from distill_sbs.serving.served_folder import ServedStudent

_ERROR: JsonObject = {"$ref": "#/components/schemas/Error"}


def describe(config: ServeConfig, student: ServedStudent, version: str) -> JsonObject:
    """The document of `/openapi.json`."""
    text: JsonObject = {"type": "string"}
    question: JsonObject = {
        "type": "object",
        "description": "Either input or inputs.",
        "properties": {
            "input": text,
            "inputs": {
                "type": "array",
                "items": text,
                "minItems": 1,
                "maxItems": config.max_inputs,
            },
            "rationale": {
                "type": "boolean",
                "description": "Whether a rationale stands beside each label. Default: true for "
                "/explain, false for /answer.",
            },
        },
        "additionalProperties": False,
    }
    answers: JsonObject = {
        "type": "object",
        "required": ["answers"],
        "properties": {
            "answers": {
                "type": "array",
                "description": "In the order of the inputs.",
                "items": {
                    "type": "object",
                    "required": ["label", "input_cut", "output_cut"],
                    "properties": {
                        "label": text,
                        "rationale": text,
                        "input_cut": {
                            "type": "boolean",
                            "description": "Whether the input was longer than the "
                            f"{student.max_input_tokens} tokens that the student reads, and its "
                            "end left out.",
                        },
                        "output_cut": {
                            "type": "boolean",
                            "description": "Whether label or rationale was not at its end after "
                            f"{student.max_decode_tokens} tokens.",
                        },
                    },
                },
            }
        },
    }
    error: JsonObject = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "One sentence."}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"distill_sbs: {student.name}",
            "version": version,
            "description": "A student that answers with a label, or a label and a rationale.",
        },
        "paths": {
            "/answer": {"post": _ask("Labels of inputs.", config)},
            "/explain": {"post": _ask("Labels of inputs, and rationales beside them.", config)},
            "/healthz": {
                "get": {
                    "summary": "Whether inputs are answered.",
                    "responses": {
                        "200": {"description": "They are."},
                        "503": {"description": "The server is about to end."},
                    },
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Counters in Prometheus' form.",
                    "responses": {"200": {"description": "Text."}},
                }
            },
        },
        "components": {"schemas": {"Question": question, "Answers": answers, "Error": error}},
    }


def _ask(summary: str, config: ServeConfig) -> JsonObject:
    refusals = {
        "400": "The body is no such question.",
        "408": f"The body took longer than {config.body_seconds:g} seconds.",
        "413": f"More than {config.max_body_bytes:,} bytes or {config.max_inputs:,} inputs.",
        "415": "The body is not said to be JSON.",
        "503": f"More than {config.max_waiting:,} inputs wait, or too many clients; ask again.",
    }
    responses: JsonObject = {
        "200": {
            "description": "Answers.",
            "content": _json({"$ref": "#/components/schemas/Answers"}),
        }
    }
    for status, why in refusals.items():
        responses[status] = {"description": why, "content": _json(_ERROR)}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": _json({"$ref": "#/components/schemas/Question"}),
        },
        "responses": responses,
    }


def _json(schema: JsonValue) -> JsonObject:
    return {"application/json": {"schema": schema}}
