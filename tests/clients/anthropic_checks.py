"""Anthropic's Python library against `/v1/messages`."""

import os
import sys
import time

import anthropic
import httpx

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


def counting(key, retries):
    """A client with this key, and when it asked."""
    asked = []
    hooks = {"request": [lambda _: asked.append(time.monotonic())]}
    made = anthropic.Anthropic(base_url=os.environ["TIDEGATE_URL"], api_key=key, max_retries=retries, timeout=30,
                               http_client=httpx.Client(event_hooks=hooks))
    return made, asked


def a_wrong_key_is_an_authentication_error_in_its_own_shape():
    stranger, asked = counting("sk-wrong", 2)
    try:
        stranger.messages.create(model=MODEL, messages=SAY, max_tokens=1)
    except anthropic.AuthenticationError as error:
        assert error.status_code == 401 and error.body["error"]["type"] == "authentication_error"
        assert len(asked) == 1, asked
        return
    raise AssertionError("no AuthenticationError")


def who_asks_too_often_is_asked_again_when_there_is_room():
    hasty, asked = counting("sk-hasty", 0)
    message = {"model": MODEL, "messages": SAY, "max_tokens": 1}
    left = []
    while len(left) < 40:
        try:
            raw = hasty.messages.with_raw_response.create(**message)
        except anthropic.RateLimitError as error:
            refused = error
            break
        left.append(int(raw.headers["anthropic-ratelimit-requests-remaining"]))
    assert left[:3] == [19, 18, 17] and left[-1] == 0, left
    assert refused.body["error"]["type"] == "rate_limit_error" and "key 'hasty'" in refused.body["error"]["message"]
    assert 1 <= int(refused.response.headers["retry-after"]) <= 3
    assert refused.response.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    asked.clear()
    assert hasty.with_options(max_retries=1).messages.create(**message).content
    assert len(asked) == 2 and 0 < asked[1] - asked[0] < 10, asked


def what_is_spent_is_spent_and_the_library_does_not_ask_again():
    poor, asked = counting("sk-poor", 2)
    for _ in range(40):
        before = len(asked)
        try:
            poor.messages.create(model=MODEL, messages=SAY, max_tokens=20)
        except anthropic.RateLimitError as error:
            refused = error
            break
    assert refused.response.headers["x-should-retry"] == "false"
    assert "key 'poor'" in refused.body["error"]["message"], refused.body
    assert len(asked) == before + 1 > 1, "once"


if __name__ == "__main__":
    sys.exit(checks.run([message_whole, message_stream, tokens_are_counted, unknown_model_is_not_found,
                         no_pod_at_all_is_an_error_in_its_own_shape,
                         a_wrong_key_is_an_authentication_error_in_its_own_shape,
                         who_asks_too_often_is_asked_again_when_there_is_room,
                         what_is_spent_is_spent_and_the_library_does_not_ask_again]))
