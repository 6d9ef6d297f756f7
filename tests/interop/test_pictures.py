import json
import re
from dataclasses import replace

import numpy as np

from moongate.interop.pictures import picture_texts
from moongate.sampling import Sample, SampleOptions

DRAWN = Sample(image=np.zeros((64, 128, 3), dtype=np.uint8), prompt="a <rex> dog, größer", seed=7)
OPTIONS = SampleOptions(steps=20, guidance=3.0, scheduler="dpm++", negative_prompt="blurred")


def read_as_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """Read the text as the programs do: the last line holds settings, the lines before the two prompts."""
    *prompts, last = text.split("\n")
    negative = [line.removeprefix("Negative prompt: ") for line in prompts if line.startswith("Negative prompt: ")]
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    settings = {key: json.loads(value) if value.startswith('"') else value for key, value in found}
    return prompts[0], "".join(negative), settings


def test_a1111_reads_prompts_and_settings() -> None:
    concepts = [("rex.safetensors", 0.8), ("cat, old", 1.0), ("rex.safetensors", 0.5)]
    texts = picture_texts(DRAWN, model="pocket", concepts=concepts, options=OPTIONS, facts={})
    assert read_as_a1111(texts["parameters"]) == (
        "a <rex> dog, größer",
        "blurred",
        {
            "Steps": "20",
            "Sampler": "DPM++ 2M",
            "CFG scale": "3.0",
            "Seed": "7",
            "Size": "128x64",
            "Model": "pocket",
            "Concepts": "rex.safetensors:0.8, cat, old:1, rex.safetensors:0.5",
        },
    )


def test_a_prompt_of_several_lines_is_one_line_to_a1111() -> None:
    lines = replace(DRAWN, prompt="a dog\nNegative prompt: a cat\nSteps: 1, Sampler: none, Seed: 2")
    texts = picture_texts(lines, model="pocket", concepts=[], options=OPTIONS, facts={})
    prompt, negative, settings = read_as_a1111(texts["parameters"])
    assert prompt == lines.prompt.replace("\n", " ")
    assert (negative, settings["Seed"]) == ("blurred", "7")
    assert json.loads(texts["moongate"])["prompt"] == lines.prompt


def test_no_key_is_one_that_comfyui_takes_for_a_graph() -> None:
    texts = picture_texts(DRAWN, model="pocket", concepts=[], options=SampleOptions(), facts={"model": "pocket"})
    assert not {"prompt", "workflow"} & texts.keys()
    assert json.loads(texts["moongate"]) == {"prompt": DRAWN.prompt, "seed": 7, "model": "pocket"}
    assert "Concepts" not in texts["parameters"]
    assert "Negative prompt" not in texts["parameters"]
