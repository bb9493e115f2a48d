"""Anthropic's Python library against `/v1/messages`."""

import os
import sys

import anthropic

import checks

MODEL = os.environ["MODEL"]
client = anthropic.Anthropic(base_url=os.environ["TIDEGATE_URL"], api_key="sk-test", max_retries=0, timeout=30)
SAY = [{"role": "user", "content": "What is a tide?"}]


def message_whole():
    answer = client.messages.create(model=MODEL, messages=SAY, max_tokens=7)
    assert len(answer.content[0].text.split()) == 7
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 7)


def message_stream():
    with client.messages.stream(model=MODEL, messages=SAY, max_tokens=7) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert len(text.split()) == 7 and final.content[0].text == text and final.stop_reason == "max_tokens"


def tokens_are_counted():
    assert client.messages.count_tokens(model=MODEL, messages=SAY).input_tokens > 0


def unknown_model_is_not_found():
    try:
        client.messages.create(model="claude", messages=SAY, max_tokens=1)
    except anthropic.NotFoundError as error:
        assert error.body["type"] == "error" and MODEL in error.body["error"]["message"]
        return
    raise AssertionError("no NotFoundError")


def no_pod_at_all_is_an_error_in_its_own_shape():
    try:
        client.messages.create(model="gone", messages=SAY, max_tokens=1)
    except anthropic.InternalServerError as error:
        assert error.status_code == 503 and error.body["error"]["type"] == "api_error"
        return
    raise AssertionError("no InternalServerError")


def a_wrong_key_is_an_authentication_error_in_its_own_shape():
    stranger = anthropic.Anthropic(base_url=os.environ["TIDEGATE_URL"], api_key="sk-wrong", max_retries=2, timeout=30)
    try:
        stranger.messages.create(model=MODEL, messages=SAY, max_tokens=1)
    except anthropic.AuthenticationError as error:
        assert error.status_code == 401 and error.body["error"]["type"] == "authentication_error"
        return
    raise AssertionError("no AuthenticationError")


if __name__ == "__main__":
    sys.exit(checks.run([message_whole, message_stream, tokens_are_counted, unknown_model_is_not_found,
                         no_pod_at_all_is_an_error_in_its_own_shape,
                         a_wrong_key_is_an_authentication_error_in_its_own_shape]))
