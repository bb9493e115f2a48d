"""OpenAI's Python library: nothing in it may notice that it does not talk to vLLM itself."""

import asyncio
import os
import sys
import time

import httpx
import openai

import checks

URL, MODEL = os.environ["TIDEGATE_URL"] + "/v1", os.environ["MODEL"]
sync = openai.OpenAI(base_url=URL, api_key="sk-test", max_retries=0, timeout=30)
SAY = [{"role": "user", "content": "What is a tide?"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def chat_whole():
    answer = sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=7)
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].message.content.split()) == 7
    assert answer.usage.completion_tokens == 7
    assert answer.model == MODEL


def chat_stream():
    text, finish = "", None
    for chunk in sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=7, stream=True):
        assert chunk.choices, "no usage chunk that nobody asked for"
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    whole = sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=7)
    assert (text, finish) == (whole.choices[0].message.content, "length")


def chat_stream_with_usage():
    options = {"include_usage": True}
    chunks = list(sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=7, stream=True,
                                               stream_options=options))
    assert chunks[-1].usage.completion_tokens == 7 and chunks[-1].choices == []


def chat_stream_left_in_the_middle():
    stream = sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=5000, stream=True)
    next(iter(stream))
    stream.close()
    assert sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=1).choices


def chat_with_the_stream_helper():
    with sync.chat.completions.stream(model=MODEL, messages=SAY, max_completion_tokens=7) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        raises(openai.LengthFinishReasonError, stream.get_final_completion)
    assert len(text.split()) == 7


def raw_response_and_extra_fields():
    raw = sync.chat.completions.with_raw_response.create(
        model=MODEL, messages=SAY, max_tokens=1, extra_body={"cache_salt": "x", "top_k": 3},
        extra_headers={"x-request-id": "from-the-client"})
    assert raw.headers["x-request-id"] == "from-the-client"
    assert raw.parse()._request_id == "from-the-client"


def adapter():
    assert sync.chat.completions.create(model="lora-a", messages=SAY, max_tokens=1).model == "lora-a"


def tools_whole():
    choice = {"type": "function", "function": {"name": "look_up"}}
    answer = sync.chat.completions.create(model=MODEL, messages=SAY, tools=[TOOL], tool_choice=choice, max_tokens=5)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("look_up", "tool_calls")


def tools_stream():
    choice = {"type": "function", "function": {"name": "look_up"}}
    name, arguments = None, ""
    for chunk in sync.chat.completions.create(model=MODEL, messages=SAY, tools=[TOOL], tool_choice=choice,
                                              max_tokens=5, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            name = name or call.function.name
            arguments += call.function.arguments or ""
    assert name == "look_up" and arguments.startswith('{"words": "') and arguments.endswith('"}')


def completions():
    answer = sync.completions.create(model=MODEL, prompt="The tide", max_tokens=4)
    assert len(answer.choices[0].text.split()) == 4
    streamed = sync.completions.create(model=MODEL, prompt="The tide", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def embeddings():
    one = sync.embeddings.create(model=MODEL, input="tide")
    both = sync.embeddings.create(model=MODEL, input=["tide", "ebb"])
    assert len(both.data) == 2 and one.data[0].embedding == both.data[0].embedding


def models():
    names = [model.id for model in sync.models.list()]
    assert MODEL in names and "lora-a" in names, names
    assert sync.models.retrieve(MODEL).id == MODEL
    assert raises(openai.NotFoundError, lambda: sync.models.retrieve("gpt-9")).code == "model_not_found"


def responses():
    made = sync.responses.create(model=MODEL, input="What is a tide?", max_output_tokens=6)
    assert len(made.output_text.split()) == 6
    again = sync.responses.retrieve(made.id)
    assert again.output_text == made.output_text
    follow_up = sync.responses.create(model=MODEL, input="And an ebb?", previous_response_id=made.id,
                                      max_output_tokens=2)
    assert follow_up.output_text
    assert sync.responses.cancel(made.id).status == "cancelled"
    raises(openai.NotFoundError, lambda: sync.responses.retrieve("resp_unknown"))


def responses_stream():
    kinds = [event.type for event in sync.responses.create(model=MODEL, input="hi", max_output_tokens=3, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds
    assert kinds.count("response.output_text.delta") == 3


def unknown_model_is_not_found():
    error = raises(openai.NotFoundError, lambda: sync.chat.completions.create(model="gpt-9", messages=SAY))
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert MODEL in error.message and error.request_id


def bad_request_of_ours_and_of_the_pods():
    error = raises(openai.BadRequestError, lambda: sync.post("/chat/completions", body=["no object"], cast_to=object))
    assert error.type == "invalid_request_error"
    raises(openai.BadRequestError,
           lambda: sync.chat.completions.create(model=MODEL, messages=SAY, max_tokens=10_000_000))


def a_busy_pod_is_asked_again_by_the_library():
    client = sync.with_options(max_retries=2)
    answer = client.chat.completions.create(model="busy", messages=SAY)
    assert answer.choices[0].message.content == "at last"


def a_pod_that_hangs_up_is_asked_again_by_the_library():
    client = sync.with_options(max_retries=2)
    assert client.chat.completions.create(model="dying", messages=SAY).choices[0].message.content == "at last"


def a_pod_that_is_not_there_is_passed_over_by_the_gateway():
    for _ in range(6):
        assert sync.chat.completions.create(model="half-gone", messages=SAY).choices


def no_pod_at_all_is_an_internal_server_error_with_a_pause():
    error = raises(openai.InternalServerError, lambda: sync.chat.completions.create(model="gone", messages=SAY))
    assert error.status_code == 503 and int(error.response.headers["retry-after"]) >= 1
    assert error.type == "server_error"


async def asynchronous_and_many_at_once():
    async with openai.AsyncOpenAI(base_url=URL, api_key="sk-test", max_retries=0, timeout=30) as client:
        async def whole(n):
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"tide {n}"}], max_tokens=5)
            return answer.usage.completion_tokens

        async def stream(n):
            said = 0
            chunks = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"tide {n}"}], max_tokens=5, stream=True)
            async for chunk in chunks:
                said += bool(chunk.choices[0].delta.content)
            return said

        counts = await asyncio.gather(*(whole(n) if n % 2 else stream(n) for n in range(40)))
        assert counts == [5] * 40, counts


async def asynchronous_cancellation():
    async with openai.AsyncOpenAI(base_url=URL, api_key="sk-test", max_retries=0) as client:
        work = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=100_000))
        done, _ = await asyncio.wait([work], timeout=0.3)
        assert not done
        work.cancel()
        assert (await client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=1)).choices


def counting(key, retries):
    """A client with this key, and when it asked."""
    asked = []
    hooks = {"request": [lambda _: asked.append(time.monotonic())]}
    client = openai.OpenAI(base_url=URL, api_key=key, max_retries=retries, timeout=30,
                           http_client=httpx.Client(event_hooks=hooks))
    return client, asked


def a_wrong_key_is_an_authentication_error_and_not_asked_again():
    stranger, asked = counting("sk-wrong", 2)
    error = raises(openai.AuthenticationError, lambda: stranger.models.list())
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "authentication_error")
    assert "sk-wrong" not in str(error)
    raises(openai.AuthenticationError, lambda: stranger.chat.completions.create(model=MODEL, messages=SAY))
    assert len(asked) == 2, asked


def who_asks_too_often_is_asked_again_when_there_is_room():
    hasty, asked = counting("sk-hasty", 0)
    chat = {"model": MODEL, "messages": SAY, "max_tokens": 1}
    left = []
    while len(left) < 40:
        try:
            raw = hasty.chat.completions.with_raw_response.create(**chat)
        except openai.RateLimitError as error:
            refused = error
            break
        assert raw.headers["x-ratelimit-limit-requests"] == "20"
        left.append(int(raw.headers["x-ratelimit-remaining-requests"]))
    assert left[:3] == [19, 18, 17] and left[-1] == 0, left
    headers = refused.response.headers
    assert (refused.code, refused.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert "key 'hasty' may use 20 requests per minute" in refused.message, refused.message
    assert headers["x-ratelimit-remaining-requests"] == "0" and headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-should-retry" not in headers and 1 <= int(headers["retry-after"]) <= 3
    asked.clear()
    patient = hasty.with_options(max_retries=1)
    assert patient.chat.completions.create(**chat).choices, "it waits as long as it is told to, and no longer"
    assert len(asked) == 2 and 0 < asked[1] - asked[0] < 10, asked


def what_is_spent_is_spent_and_the_library_does_not_ask_again():
    poor, asked = counting("sk-poor", 2)
    chat = {"model": MODEL, "messages": SAY, "max_tokens": 20}
    spent = 0
    for _ in range(40):
        before = len(asked)
        try:
            spent += poor.chat.completions.create(**chat).usage.total_tokens
        except openai.RateLimitError as error:
            refused = error
            break
    assert 0 < spent <= 200, spent
    assert (refused.status_code, refused.code, refused.type) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.response.headers["x-should-retry"] == "false", refused.response.headers
    assert "key 'poor'" in refused.message, refused.message
    assert len(asked) == before + 1, "once"


def no_pod_is_asked_for_again_after_the_pause():
    client, asked = counting("sk-test", 1)
    error = raises(openai.InternalServerError, lambda: client.chat.completions.create(model="gone", messages=SAY))
    assert len(asked) == 2, asked
    assert asked[1] - asked[0] >= int(error.response.headers["retry-after"]), asked


if __name__ == "__main__":
    sys.exit(checks.run([
        chat_whole, chat_stream, chat_stream_with_usage, chat_stream_left_in_the_middle, chat_with_the_stream_helper,
        raw_response_and_extra_fields, adapter, tools_whole, tools_stream, completions, embeddings, models, responses,
        responses_stream, unknown_model_is_not_found, bad_request_of_ours_and_of_the_pods,
        a_busy_pod_is_asked_again_by_the_library, a_pod_that_hangs_up_is_asked_again_by_the_library,
        a_pod_that_is_not_there_is_passed_over_by_the_gateway, no_pod_at_all_is_an_internal_server_error_with_a_pause,
        asynchronous_and_many_at_once, asynchronous_cancellation,
        a_wrong_key_is_an_authentication_error_and_not_asked_again,
        who_asks_too_often_is_asked_again_when_there_is_room,
        what_is_spent_is_spent_and_the_library_does_not_ask_again, no_pod_is_asked_for_again_after_the_pause,
    ]))
