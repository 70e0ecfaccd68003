"""Weights on the Hugging Face hub, through its own client and cache."""

from pathlib import Path

from diffrate_jax.errors import UserError

# What repositories call their weights, the safest kind first.
FILES = ("model.safetensors", "pytorch_model.bin")


def fetched(name: str) -> Path:
    """Returns the local path of a repository's weights, downloaded unless cached.

    Args:
        name: "owner/repository", perhaps with "@revision".

    Raises:
        UserError: no such repository, no weights in it, or neither network nor cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repository, _, revision = name.partition("@")
    for file in FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"hf-hub:{name} is not in the local cache and the hub cannot be "
                "reached; download it on a machine with a network, then give the file"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"cannot fetch hf-hub:{name}: {reason}; check its name on the hub"
            ) from error
    raise UserError(
        f"hf-hub:{name} holds neither {' nor '.join(FILES)}; download its weights and "
        "give the file"
    )
