"""The pictures: the same for the same request, another for any other, in every format and size."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.contract.conftest import Webui, encoded, picture, pixels

USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
PLAIN = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1}


def info(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer["info"])
    return found


def img2img(webui: Webui, **fields: Any) -> dict[str, Any]:
    init = Image.new("RGB", (64, 64), (200, 40, 40))
    body = {
        **PLAIN,
        "steps": 4,
        "denoising_strength": 0.5,
        "init_images": [encoded(init)],
        **fields,
    }
    answer = webui.post("img2img", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    found["info"] = info(found)
    return found


def test_the_same_request_gives_the_same_bytes(steady: Webui) -> None:
    assert steady.generate()["images"] == steady.generate()["images"]


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a dog"},
        {"negative_prompt": "bad"},
        {"seed": 2},
        {"steps": 3},
        {"cfg_scale": 8},
        {"sampler_name": "DDIM"},
        {"scheduler": "Karras"},
        {"width": 72},
        {"height": 72},
        {"subseed": 5, "subseed_strength": 0.1},
        {"seed_resize_from_w": 32, "seed_resize_from_h": 32},
        {"styles": ["Oil"]},
        {"tiling": True},
        {"s_churn": 0.5},
        {"override_settings": {"sd_model_checkpoint": "beta"}},
        {"enable_hr": True, "denoising_strength": 0.5},
    ],
    ids=str,
)
def test_a_change_of_any_field_that_counts_changes_pixels(steady: Webui, changed: Any) -> None:
    assert pixels(steady.generate(**changed)) != pixels(steady.generate())


@pytest.mark.parametrize(
    "changed",
    [
        {"subseed": 5},
        {"prompt": "  A   Cat "},
        {"styles": ["nope"]},
        {"restore_faces": True},
        {"width": 70, "height": 66},
        {"sampler_name": "", "sampler_index": "Euler"},
        {"scheduler": "nope"},
        {"alwayson_scripts": {"Seed": {"args": [99]}, "comments": {}}},
        {"force_task_id": "x"},
    ],
    ids=str,
)
def test_a_change_that_does_not_count_changes_none(steady: Webui, changed: Any) -> None:
    assert pixels(steady.generate(**changed)) == pixels(steady.generate())


@pytest.mark.parametrize(
    ("sampler", "scheduler", "used", "schedule"),
    [
        ("DPM++ 2M Karras", None, "DPM++ 2M", "Karras"),
        ("Euler a Karras", None, "Euler a", "Karras"),
        ("Euler SGMUniform", None, "Euler", "SGM Uniform"),
        ("Euler", "exponential", "Euler", "Exponential"),
        ("Euler Karras", "Exponential", "Euler", "Exponential"),
        ("NoSuch", None, "DPM++ 2M", "Karras"),
        ("euler a", None, "DPM++ 2M", "Karras"),
        ("k_euler_a", None, "DPM++ 2M", "Karras"),
        ("DDIM", "karras", "DDIM", "Karras"),
        ("UniPC", None, "UniPC", "Automatic"),
    ],
)
def test_samplers_and_schedulers_fall_back_in_silence(
    steady: Webui, sampler: str, scheduler: str | None, used: str, schedule: str
) -> None:
    answer = steady.generate(sampler_name=sampler, scheduler=scheduler)

    assert answer["info"]["sampler_name"] == used
    assert f"Sampler: {used}, Schedule type: {schedule}, " in answer["info"]["infotexts"][0]


def test_the_same_sampler_by_two_spellings_gives_one_picture(steady: Webui) -> None:
    one = steady.generate(sampler_name="DPM++ 2M Karras")
    other = steady.generate(sampler_name="DPM++ 2M", scheduler="Karras")

    assert pixels(one) == pixels(other)


def test_a_png_weighs_what_a_real_one_does(steady: Webui) -> None:
    for size, pixels_of in ((512, 1), (1024, 4)):
        answer = steady.generate(width=size, height=size)
        weight = len(base64.b64decode(answer["images"][0]))
        assert 350_000 * pixels_of < weight < 600_000 * pixels_of


def test_the_infotext_is_in_a_png_and_is_read_back(steady: Webui) -> None:
    answer = steady.generate(prompt='a "cat", 猫', negative_prompt="bad: worse")

    text = answer["info"]["infotexts"][0]
    assert picture(answer).info["parameters"] == text
    found = steady.post("png-info", {"image": answer["images"][0]}).json()
    assert found["info"] == text
    assert found["parameters"]["Prompt"] == 'a "cat", 猫'
    assert found["parameters"]["Negative prompt"] == "bad: worse"
    assert found["parameters"]["Size-1"] == "64"


@pytest.mark.parametrize(("written", "kind"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")])
def test_the_infotext_is_in_the_exif_of_other_formats(
    webui: Webui, written: str, kind: str
) -> None:
    webui.post("options", {"samples_format": written})

    answer = webui.generate(prompt="a 猫")

    image = picture(answer)
    assert image.format == kind
    comment = image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == answer["info"]["infotexts"][0]
    found = webui.post("png-info", {"image": answer["images"][0]}).json()
    assert found["parameters"]["Prompt"] == "a 猫"


def test_an_unknown_format_fails_after_the_job_ran(webui: Webui) -> None:
    webui.post("options", {"samples_format": "avif"})

    answer = webui.post("txt2img", PLAIN)

    assert (answer.status_code, answer.json()["detail"]) == (500, "Invalid image format")
    assert webui.journal()["jobs"] == 1


def test_a_format_in_an_override_that_is_taken_back_has_no_effect(webui: Webui) -> None:
    webui.post("options", {"samples_format": "png"})

    assert picture(webui.generate(override_settings={"samples_format": "jpg"})).format == "PNG"


def test_a_batch_counts_its_seeds_up(steady: Webui) -> None:
    answer = steady.generate(seed=42, batch_size=2, n_iter=2)

    assert answer["info"]["all_seeds"] == [42, 43, 44, 45]
    assert len(answer["images"]) == len(answer["info"]["infotexts"]) == 4
    assert answer["info"]["index_of_first_image"] == 0
    assert pixels(answer, 1) == pixels(steady.generate(seed=43))


def test_variations_keep_the_seed(steady: Webui) -> None:
    answer = steady.generate(seed=42, subseed=7, subseed_strength=0.2, n_iter=2)

    assert answer["info"]["all_seeds"] == [42, 42]
    assert answer["info"]["all_subseeds"] == [7, 8]
    assert "Variation seed: 8, Variation seed strength: 0.2" in answer["info"]["infotexts"][1]
    assert pixels(answer, 0) != pixels(answer, 1)


def test_a_grid_comes_only_with_saved_images(webui: Webui, tmp_path: Path) -> None:
    answer = webui.generate(seed=42, batch_size=2, n_iter=2, save_images=True)

    assert picture(answer).size == (128, 128)
    assert len(answer["images"]) == len(answer["info"]["infotexts"]) == 5
    assert answer["info"]["index_of_first_image"] == 1
    assert len(answer["info"]["all_seeds"]) == 4
    samples = sorted((tmp_path / "data" / "outputs" / "txt2img-images").rglob("*.png"))
    assert [file.name for file in samples] == [f"0000{n}-{42 + n}.png" for n in range(4)]
    assert len(list((tmp_path / "data" / "outputs" / "txt2img-grids").rglob("*.png"))) == 1


def test_images_are_left_out_on_request(steady: Webui) -> None:
    answer = steady.generate(send_images=False)

    assert answer["images"] == []
    assert len(answer["info"]["infotexts"]) == 1


@pytest.mark.parametrize(
    ("fields", "size", "said"),
    [
        ({}, (128, 128), "Hires upscale: 2.0"),
        ({"hr_scale": 1.5}, (96, 96), "Hires upscale: 1.5"),
        ({"hr_resize_x": 96, "hr_resize_y": 128}, (96, 128), "Hires resize: 96x128"),
        ({"hr_resize_x": 160}, (160, 160), "Hires resize: 160x0"),
        ({"hr_upscaler": "Lanczos", "hr_scale": 1.3}, (80, 80), "Hires upscaler: Lanczos"),
        ({"hr_second_pass_steps": 7}, (128, 128), "Hires steps: 7"),
        ({"hr_prompt": "a dog"}, (128, 128), "Hires prompt: a dog"),
        ({"hr_sampler_name": "DDIM"}, (128, 128), "Hires sampler: DDIM"),
        ({"hr_scheduler": "Karras"}, (128, 128), "Hires schedule type: Karras"),
        ({"hr_checkpoint_name": "beta"}, (128, 128), "Hires checkpoint: beta"),
    ],
    ids=str,
)
def test_the_hires_fix_gives_its_size_and_says_what_it_did(
    steady: Webui, fields: Any, size: tuple[int, int], said: str
) -> None:
    answer = steady.generate(enable_hr=True, denoising_strength=0.5, **fields)

    assert picture(answer).size == size
    assert said in answer["info"]["infotexts"][0]
    assert (answer["info"]["width"], answer["info"]["height"]) == (64, 64)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"steps": 0}, "ZeroDivisionError", "integer division or modulo by zero"),
        ({"steps": -1}, "RuntimeError", "number of steps must be non-negative"),
        ({"batch_size": 0}, "IndexError", "list index out of range"),
        ({"n_iter": 0}, "IndexError", "list index out of range"),
        ({"seed": 2**70}, "RuntimeError", "Overflow when unpacking long"),
        ({"negative_prompt": None}, "TypeError", "'NoneType' object is not iterable"),
        ({"refiner_checkpoint": "x"}, "Exception", "Could not find checkpoint with name x"),
        (
            {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "x"},
            "Exception",
            "could not find upscaler named x",
        ),
        (
            {"enable_hr": True},
            "TypeError",
            "'>' not supported between instances of 'NoneType' and 'int'",
        ),
        (
            {"enable_hr": True, "denoising_strength": 0.5, "hr_sampler_name": "x"},
            "AssertionError",
            "bad sampler name: x",
        ),
    ],
    ids=str,
)
def test_impossible_values_fail_with_the_words_of_a1111(
    steady: Webui, fields: Any, error: str, text: str
) -> None:
    answer = steady.post("txt2img", {**PLAIN, **fields})

    assert answer.status_code == 500
    assert (answer.json()["error"], answer.json()["errors"]) == (error, text)


@pytest.mark.parametrize(
    "fields",
    [{"cfg_scale": "nan"}, {"override_settings": {"sd_model_checkpoint": "broken"}}],
    ids=str,
)
def test_nan_is_noticed_and_the_next_job_works(steady: Webui, fields: Any) -> None:
    plain = steady.generate()

    answer = steady.post("txt2img", {**PLAIN, **fields})

    assert (answer.status_code, answer.json()["error"]) == (500, "NansException")
    assert pixels(steady.generate()) == pixels(plain)


def test_styles_go_around_the_prompt_and_the_request_is_echoed_as_sent(steady: Webui) -> None:
    answer = steady.generate(styles=["Oil"])

    assert answer["info"]["prompt"] == "oil, a cat"
    assert answer["info"]["negative_prompt"] == "flat"
    assert answer["parameters"]["prompt"] == "a cat"


def test_comments_are_taken_out_of_the_prompt(steady: Webui) -> None:
    answer = steady.generate(prompt="a cat # not a dog\nhere")

    assert answer["info"]["prompt"] == "a cat \nhere"


def test_an_infotext_fills_what_was_not_sent(steady: Webui) -> None:
    text = (
        "a dog\nNegative prompt: bad\nSteps: 3, Sampler: DDIM, CFG scale: 5, Seed: 99, Size: 72x64,"
        " Clip skip: 2"
    )

    answer = steady.post("txt2img", {"infotext": text, "steps": 1}).json()

    said = info(answer)
    assert (said["prompt"], said["negative_prompt"], said["seed"]) == ("a dog", "bad", 99)
    assert (said["steps"], said["sampler_name"], said["width"]) == (1, "DDIM", 72)
    assert answer["parameters"]["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert "Clip skip: 2" in said["infotexts"][0]
    # Never set before, it stays.
    steady.post("options", {"CLIP_stop_at_last_layers": 1})


def test_the_prompt_matrix_makes_every_combination_and_a_grid(steady: Webui) -> None:
    answer = steady.generate(
        prompt="a cat|blue|red",
        script_name="Prompt Matrix",
        script_args=[False, False, "positive", "comma", 0],
    )

    prompts = ["a cat", "a cat, blue", "a cat, red", "a cat, blue, red"]
    assert answer["info"]["all_prompts"] == prompts
    assert len(answer["images"]) == 5
    assert answer["info"]["index_of_first_image"] == 1
    width, height = picture(answer).size
    assert (width, height >= 128) == (176, True)


def test_denoising_0_gives_the_init_image_back_but_for_the_words(steady: Webui) -> None:
    image = picture(img2img(steady, denoising_strength=0))

    assert image.getpixel((32, 10)) == (200, 40, 40)


def test_the_stronger_the_denoising_the_further_from_the_init_image(steady: Webui) -> None:
    def distance(strength: float) -> int:
        data = picture(img2img(steady, denoising_strength=strength)).crop((0, 0, 64, 40)).tobytes()
        return sum(abs(value - (200, 40, 40)[n % 3]) for n, value in enumerate(data))

    assert 0 < distance(0.3) < distance(0.6) < distance(0.9)


def test_outside_of_the_mask_nothing_changes(steady: Webui) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 64, 24))

    answer = img2img(steady, mask=encoded(mask), inpaint_full_res=False, mask_blur=0)

    image = picture(answer)
    assert image.getpixel((32, 36)) == (200, 40, 40)
    assert image.getpixel((32, 10)) != (200, 40, 40)
    assert "Mask blur" not in answer["info"]["infotexts"][0]


def test_only_masked_keeps_the_size_of_the_init_image(steady: Webui) -> None:
    init = Image.new("RGB", (160, 96), (200, 40, 40))
    mask = Image.new("L", (160, 96), 0)
    mask.paste(255, (20, 20, 40, 40))

    answer = img2img(
        steady, init_images=[encoded(init)], mask=encoded(mask), inpaint_full_res_padding=8
    )

    assert picture(answer).size == (160, 96)
    text = answer["info"]["infotexts"][0]
    assert "Inpaint area: Only masked, Masked area padding: 8, Masked content: fill" in text


def test_a_blank_mask_is_no_mask(steady: Webui) -> None:
    answer = img2img(steady, mask=encoded(Image.new("L", (64, 64), 0)))

    assert "Inpaint area" not in answer["info"]["infotexts"][0]


def test_an_inverted_mask_says_so(steady: Webui) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 64, 24))

    answer = img2img(steady, mask=encoded(mask), inpainting_mask_invert=1)

    assert "Mask mode: Inpaint not masked" in answer["info"]["infotexts"][0]


@pytest.mark.parametrize(
    ("images", "status", "text"),
    [
        (None, 404, "Init image not found"),
        ([], 500, "Expected 3D (unbatched) or 4D (batched) input to conv2d"),
        ([""], 500, "Invalid encoded image"),
        (["!!!"], 500, "Invalid encoded image"),
        ([None], 500, "'NoneType' object has no attribute 'startswith'"),
        ([7], 500, "'int' object has no attribute 'startswith'"),
        (["data:image/png;base64"], 500, "list index out of range"),
        (["http://127.0.0.1:1/x.png"], 500, "Request to local resource not allowed"),
    ],
    ids=str,
)
def test_an_init_image_that_is_none_fails(
    steady: Webui, images: Any, status: int, text: str
) -> None:
    answer = steady.post("img2img", {**PLAIN, "init_images": images})

    assert answer.status_code == status
    assert text in answer.json()["detail"] + answer.json()["errors"]


def test_half_an_init_image_fails(steady: Webui) -> None:
    whole = encoded(Image.effect_noise((64, 64), 80).convert("RGB"))

    answer = steady.post("img2img", {**PLAIN, "init_images": [whole[: len(whole) // 8 * 4]]})

    assert (answer.status_code, answer.json()["detail"]) == (500, "Invalid encoded image")


def test_several_init_images_make_a_batch_but_not_more_than_it_takes(steady: Webui) -> None:
    images = [encoded(Image.new("RGB", (64, 64), colour)) for colour in ("red", "green")]

    assert len(img2img(steady, init_images=images, batch_size=3)["images"]) == 2
    answer = steady.post("img2img", {**PLAIN, "init_images": images})
    text = "bad number of images passed: 2; expecting 1 or less"
    assert answer.json()["errors"] == text


def test_the_request_is_echoed_without_its_pictures(steady: Webui) -> None:
    init = encoded(Image.new("RGB", (64, 64), (200, 40, 40)))

    assert img2img(steady)["parameters"]["init_images"] is None
    assert img2img(steady, include_init_images=True)["parameters"]["init_images"] == [init]


@pytest.mark.parametrize(
    ("fields", "size", "said"),
    [
        ({}, (64, 64), "<p></p>"),
        (
            {"upscaler_1": "Lanczos"},
            (128, 128),
            "<p>Postprocess upscale by: 2, Postprocess upscaler: Lanczos</p>",
        ),
        (
            {"upscaler_1": "ESRGAN_4x", "upscaling_resize": 1.3},
            (80, 80),
            "<p>Postprocess upscale by: 1.3, Postprocess upscaler: ESRGAN_4x</p>",
        ),
        (
            {
                "upscaler_1": "Nearest",
                "resize_mode": 1,
                "upscaling_resize_w": 96,
                "upscaling_resize_h": 64,
            },
            (96, 64),
            (
                "<p>Postprocess upscale to: 96x64, Postprocess crop to: 96x64, "
                "Postprocess upscaler: Nearest</p>"
            ),
        ),
        ({"gfpgan_visibility": 1}, (64, 64), "<p>GFPGAN visibility: 1.0</p>"),
    ],
    ids=str,
)
def test_extras_resize_and_say_what_they_did(
    steady: Webui, fields: Any, size: tuple[int, int], said: str
) -> None:
    image = encoded(Image.new("RGB", (64, 64), "blue"))

    answer = steady.post("extra-single-image", {"image": image, **fields}).json()

    assert answer["html_info"] == said
    assert picture({"images": [answer["image"]]}).size == size


def test_an_empty_batch_of_extras_is_fine(steady: Webui) -> None:
    assert steady.post("extra-batch-images", {"imageList": []}).json()["images"] == []


def test_interrogating_without_models_is_an_error_in_a_caption(steady: Webui) -> None:
    image = encoded(Image.new("RGB", (8, 8)))

    assert steady.post("interrogate", {"image": image}).json() == {"caption": "<error>"}
    failed = steady.post("interrogate", {"image": image, "model": "deepdanbooru"})
    assert (failed.status_code, failed.json()["error"]) == (500, "IndexError")
