# SPDX-License-Identifier: Apache-2.0
"""Writes a language model that knows nothing: a llama of random weights, always the same ones.

    model.py FILE

It is as small as a model can be that llama.cpp takes for one, and says words, some of them not in ASCII, in an order
that depends on the prompt.
"""

import sys

import gguf
import numpy

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 64, 2, 4, 128, 4096
WORDS = """one two three four five six seven eight nine ten red green blue sun moon tree river stone bird fish house
 door key glass paper water fire light night day über naïve façade Straße žluť дом море 水 火 木 日本 한국 שלום 🐦 👩‍🚀 –
 … “so” 'it' "is" \\n \\ / <b> & </b> 100% {x} [y] data: : , . ! ?""".split()
# In the manner of Hermes and Qwen, so that llama.cpp knows what a call of a tool looks like.
CHAT = """\
{%- if tools %}<|system|>Tools: <tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
To call one: <tool_call>
{"name": <name>, "arguments": <object>}
</tool_call></s>{% endif %}
{%- for message in messages %}
  {%- if message.role == "tool" %}<|user|><tool_response>
{{ message.content }}
</tool_response></s>
  {%- elif message.tool_calls %}<|assistant|>{{ message.content or "" }}
    {%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
    {%- endfor %}</s>
  {%- else %}<|{{ message.role }}|>{{ message.content }}</s>
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""

# The tokens: the special ones, all bytes, all of printable ASCII, and the words, which only the model says.
kind = gguf.TokenType
special = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
special += [(f"<|{role}|>", kind.CONTROL) for role in ("system", "user", "assistant")]
tokens = special + [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
tokens += [(chr(code) if code > 32 else "▁", kind.NORMAL) for code in range(32, 127)]
quiet = len(tokens)
known = {token for token, _ in tokens}
tokens += [("▁" + word, kind.NORMAL) for word in WORDS if "▁" + word not in known]
END, CALL = 2, len(tokens)
tokens.append(("<tool_call>\n", kind.NORMAL))

random = numpy.random.Generator(numpy.random.PCG64(20))


def weights(rows, columns, scale=1.0):
    return (random.standard_normal((rows, columns)) * scale / columns**0.5).astype(numpy.float32)


model = gguf.GGUFWriter(sys.argv[1], "llama")
model.add_name("nonsense")
model.add_vocab_size(len(tokens))
model.add_context_length(CONTEXT)
model.add_embedding_length(WIDTH)
model.add_block_count(LAYERS)
model.add_feed_forward_length(INNER)
model.add_head_count(HEADS)
model.add_head_count_kv(HEADS)
model.add_layer_norm_rms_eps(1e-5)
model.add_rope_dimension_count(WIDTH // HEADS)
model.add_file_type(gguf.LlamaFileType.ALL_F32)
model.add_tokenizer_model("llama")
model.add_token_list([token for token, _ in tokens])
model.add_token_scores([0.0 if type == kind.NORMAL else -1000.0 for _, type in tokens])
model.add_token_types([type for _, type in tokens])
model.add_bos_token_id(1)
model.add_eos_token_id(END)
model.add_add_bos_token(True)
model.add_add_space_prefix(False)
model.add_chat_template(CHAT)

# The first number of what it thinks never changes.
embedding = weights(len(tokens), WIDTH, 8)
embedding[:, 0] = 1
output = weights(len(tokens), WIDTH)
output[:, 0] = 0
output[:quiet] *= 0.01  # it says words,
output[END] *= 0.6  # comes to an end now and then,
output[END, 0] = 6.5
output[CALL] = output[END] * 0.99  # and where it would, but must call a tool first, does that
model.add_tensor("token_embd.weight", embedding)
model.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
model.add_tensor("output.weight", output)
for layer in range(LAYERS):
    block = f"blk.{layer}."
    for name in ("attn_norm", "ffn_norm"):
        model.add_tensor(f"{block}{name}.weight", numpy.ones(WIDTH, numpy.float32))
    for name, rows, columns, scale in (
        ("attn_q", WIDTH, WIDTH, 2),
        ("attn_k", WIDTH, WIDTH, 2),
        ("attn_v", WIDTH, WIDTH, 2),
        ("attn_output", WIDTH, WIDTH, 2),
        ("ffn_gate", INNER, WIDTH, 1),
        ("ffn_up", INNER, WIDTH, 1),
        ("ffn_down", WIDTH, INNER, 1),
    ):
        tensor = weights(rows, columns, scale)
        if name in ("attn_output", "ffn_down"):
            tensor[0] = 0
        model.add_tensor(f"{block}{name}.weight", tensor)
model.write_header_to_file()
model.write_kv_data_to_file()
model.write_tensors_to_file()
model.close()
