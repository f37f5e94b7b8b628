"""Find out whether a key for the server of Weights & Biases is configured."""

import os
from pathlib import Path


def has_key() -> bool:
    """Return whether a key is configured for W&B's server. The key itself is not stored."""
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY"):
        return True
    # W&B's settings file, which `wandb login --host` writes, may be the only place with a private server's address.
    file = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings"
    settings = wandb.Settings(settings_system=str(file)).read_system_settings().all()
    server = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    return get_netrc_auth(server) is not None
