"""The secrets of a stack."""

import secrets
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Made anew for each stack, and easy to recognise wherever they turn up."""

    ray: str
    postgres: str
    postgres_admin: str
    s3_id: str
    s3: str
    s3_inner: str
    admin: str
    job: str
    reader: str
    flask: str

    def values(self) -> dict[str, str]:
        """Return each by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def new_secrets() -> Secrets:
    """Draw them."""
    return Secrets(**{field.name: f"rnc+{field.name}+{secrets.token_hex(16)}" for field in fields(Secrets)})
