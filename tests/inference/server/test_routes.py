"""What the routes answer, as clients see it."""

import openai


def test_first(server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="canary-key-5417", max_retries=0)
    print(client.models.list())
    print(
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "twice"}], max_tokens=8, logprobs=True, top_logprobs=2
        )
    )
    for chunk in client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "twice"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ):
        print(chunk)
    print(client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=4, logprobs=1))
    with server.client() as http:
        for path in ("/health", "/metrics", "/", "/v1/models/tiny", "/nowhere"):
            answer = http.get(path)
            print(path, answer.status_code, answer.headers, answer.text[:3000])
        print(
            http.post("/tokenize", json={"prompt": "twice"}).text,
            http.post("/detokenize", json={"tokens": [5, 7]}).text,
        )
