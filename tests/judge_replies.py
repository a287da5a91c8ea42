"""What a judge that can be seen through replies to the prompts of `eval.judges`."""

import re


def parts(prompt):
    """The code of a judge's prompt, and its quoted texts by name."""
    code = re.search(r"BEGIN [A-Z]+ ([0-9a-f]{6})\n", prompt)[1]
    return code, dict(re.findall(rf"BEGIN ([A-Z]+(?: [AB])?) {code}\n(.*?)\nEND \1 {code}", prompt,
                                 re.S))


def prefer_longer(prompt):
    """A judge that prefers the longer answer, rates by length, and rewrites."""
    if "Rewrite the answer" in prompt:
        answer = parts(prompt)[1]["ANSWER"]
        return answer * 2 if "twice" in prompt else answer[:len(answer) // 2 + 1]
    code, texts = parts(prompt)
    if "ANSWER" in texts:
        return f"Long. [[{min(len(texts['ANSWER']), 10)} {code}]]"
    first, second = len(texts["ANSWER A"]), len(texts["ANSWER B"])
    letter = "A" if first > second else "B" if second > first else "C"
    return f"One of them is longer.\n[[{letter} {code}]]"
