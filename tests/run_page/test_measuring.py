from moongate.run_page.measuring import unrelated_prompts


def test_unrelated_prompts_name_none_of_what_is_taught_and_there_are_always_some() -> None:
    prompts = unrelated_prompts(["<rex> dog"], 1000)
    assert 8 < len(prompts) < 1000
    assert not any("dog" in prompt for prompt in prompts)
    assert len(unrelated_prompts(["<e> e bike", "<t> t shirt"], 8)) == 8
    assert len(unrelated_prompts(["of the and with", "photo sketch painting drawing postcard people ing ter"], 8)) > 0
