import pytest

from schemas.settings import Settings, SettingsError


def test_a_variable_reaches_its_field() -> None:
    assert Settings.from_env({"A1111_CACHE_STALL_S": "12.5"}).cache.stall_s == 12.5


def test_foreign_and_empty_variables_are_ignored() -> None:
    assert Settings.from_env({"PATH": "/bin", "A1111_WEBUI_PORT": ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("A1111_CACHE_STAL_S", "did you mean A1111_CACHE_STALL_S?"),
        ("A1111_CASHE_STALL_S", "did you mean A1111_CACHE_STALL_S?"),
        ("A1111_job_max_step", "did you mean A1111_JOB_MAX_STEPS?"),
        ("A1111_JOB", "docs/configuration.md lists them."),
        ("A1111_X", "docs/configuration.md lists them."),
    ],
)
def test_a_misspelt_variable_is_refused_by_name(name: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: "1"})

    assert str(caught.value) == f"{name}: there is no such setting; {told}"


def test_a_wrong_value_is_told_under_the_name_that_was_set() -> None:
    wrong = {"HF_ENDPOINT": "nowhere", "A1111_CACHE_ALLOW_PICKLE": "vae,upscalers"}

    with pytest.raises(SettingsError) as caught:
        Settings.from_env({**wrong, "A1111_CASHE_X": "1"})

    pickles, misspelt, endpoint = str(caught.value).splitlines()
    assert misspelt.startswith("A1111_CASHE_X: there is no such setting")
    assert pickles.startswith("A1111_CACHE_ALLOW_PICKLE: Input should be 'checkpoint', ")
    assert endpoint == "HF_ENDPOINT: must be the URL of a host"


def test_space_round_a_value_is_no_part_of_it() -> None:
    settings = Settings.from_env({"HF_TOKEN": " hf-s3cr3t\n", "A1111_WEBUI_PORT": " "})

    assert settings.cache.hf_token is not None
    assert settings.cache.hf_token.get_secret_value() == "hf-s3cr3t"
    assert settings.webui == Settings().webui


@pytest.mark.parametrize("name", ["A1111_JOB_MAX_INPUT_MB", "A1111_CACHE_BUDGET_GB"])
@pytest.mark.parametrize("number", ["inf", "nan"])
def test_numbers_are_finite(name: str, number: str) -> None:
    """They are made integers of, which no infinite one can be."""
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.from_env({name: number})


def test_every_problem_has_a_line_and_no_value() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"A1111_WEBUI_PORT": "s3cr3t", "A1111_JOB_MAX_STEPS": "-1"})

    lines = str(caught.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "A1111_JOB_MAX_STEPS",
        "A1111_WEBUI_PORT",
    ]
    assert "s3cr3t" not in str(caught.value)


def test_tokens_under_their_usual_names_arrive_and_do_not_print() -> None:
    settings = Settings.from_env({"HF_TOKEN": "hf-s3cr3t", "CIVITAI_TOKEN": "cv-s3cr3t"})

    assert settings.cache.hf_token is not None
    assert settings.cache.hf_token.get_secret_value() == "hf-s3cr3t"
    assert "s3cr3t" not in repr(settings)


def test_what_differs_from_the_defaults_is_told_without_secrets() -> None:
    settings = Settings.from_env(
        {
            "A1111_WEBUI_PORT": "3000",
            "A1111_WEBUI_EAGER": "true",
            "CIVITAI_TOKEN": "abc",
            "A1111_CACHE_ALLOW_PICKLE": "vae",
            "A1111_CACHE_VOLUME": "/data",
            "A1111_CACHE_PRELOAD": "lora https://example.org/x?token=abc;lora y",
        }
    )

    assert settings.changed() == {
        "A1111_CACHE_VOLUME": "/data",
        "A1111_CACHE_ALLOW_PICKLE": ["vae"],
        "A1111_CACHE_PRELOAD": "lora https://example.org/x?…;lora y",
        "A1111_CACHE_CIVITAI_TOKEN": "set",
        "A1111_WEBUI_EAGER": True,
    }


@pytest.mark.parametrize("name", ["A1111_JOB_PREFETCH", "A1111_WORKER_PREFETCH"])
def test_who_prefetches_takes_two_jobs_at_a_time(name: str) -> None:
    assert Settings.from_env({name: "1"}).job.at_once == 2
    assert Settings().job.at_once == 1
    assert Settings.from_env({"A1111_JOB_CONCURRENCY": "4"}).job.at_once == 4


def test_more_jobs_than_two_and_prefetch_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="A1111_JOB_CONCURRENCY"):
        Settings.from_env({"A1111_JOB_PREFETCH": "true", "A1111_JOB_CONCURRENCY": "3"})
