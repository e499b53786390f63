"""Short chat templates that work as those of well-known models do, and a tokenizer for them."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
)
# A system message where there is none, as Qwen2.5.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe a kind helper.<|im_end|>\n"
    "{% endif %}" + CHATML
)
# Reasoning stays in answers to the last question, an empty block where there is none, as Qwen3.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set c = m.content or '' %}{% set why = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set why = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or why) %}"
    "<think>\n{{ why }}\n</think>\n\n{% endif %}{{ c }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}" + ASK + "{% if add_generation_prompt and "
    "enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
# What stands before </think> is dropped, and the prompt ends with <think>, as DeepSeek-R1.
DROPS_THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'system' %}{{ m.content }}{% else %}<|assistant|>"
    "{{ (m.content or '').split('</think>')[-1] }}{% for call in m.tool_calls or [] %}<|call|>"
    "{{ call.function.name + '\n' + call.function.arguments }}{% endfor %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
# BOS, headers, today's date in a system message of its own, and no white space around contents,
# as Llama 3.1.
HEADERS = (
    "{{ bos_token }}{% if date_string is not defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|head|>system<|/head|>\n\nToday is {{ date_string }}\n\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}<|eot|>"
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
# No system message, another name for the assistant, as Gemma.
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|/turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
)
# Tools before the last question, the system message in it, ids of 9 characters, no generation
# prompt, as Mistral.
INST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% set asked = messages | selectattr('role', "
    "'equalto', 'user') | list %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if m == asked[-1] and tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST] "
    "{% if m == asked[-1] and system is defined %}{{ system + '\n\n' }}{% endif %}"
    "{{ m.content }}[/INST]{% elif m.tool_calls %}[CALLS][{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "{{ call.function | tojson }}{% endfor %}]</s>{% elif m.role == 'tool' %}[RESULTS]"
    "{{ {'content': m.content} | tojson(ensure_ascii=true) }}[/RESULTS]{% else %}"
    " {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
# Tools and tool calls in tags, as Hermes and Qwen; arguments as tags, as Qwen3-Coder.
TOOL_TAGS = (
    "{% if tools %}<|im_start|>system\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}</tools><|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>\n"
    "<function={{ call.function.name }}>\n{% for key, value in call.function.arguments | items %}"
    "<parameter={{ key }}>\n{{ value if value is string else value | tojson }}\n</parameter>\n"
    "{% endfor %}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + ASK
)
# EOS and a line break after every turn, as Zephyr.
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Content as parts only, as SmolVLM.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    + ASK
)
TAGS = (
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"),
    *("<|head|>", "<|/head|>", "<|eot|>", "<|turn|>", "<|/turn|>"),
)


def bytes_tokenizer(template=None, eos="<|im_end|>", bos=None, adds=""):
    """Return a tokenizer whose tokens are bytes and ``TAGS``; ``adds`` as ``"<s> $A </s>"``."""
    words = [*TAGS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in TAGS])
    if adds:
        special = [(tag, TAGS.index(tag)) for tag in ("<s>", "</s>") if tag in adds.split()]
        inner.post_processor = processors.TemplateProcessing(single=adds, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token=eos, bos_token=bos
    )
    tokenizer.chat_template = template
    return tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def pair(prompt, chosen, rejected, **more):
    """Return a row of messages; texts are of the user in the prompt, of the assistant elsewhere."""
    prompt = [user(prompt)] if isinstance(prompt, str) else prompt
    answers = [[assistant(a)] if isinstance(a, str) else a for a in (chosen, rejected)]
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], **more}
