"""Where the collection is, how it is made, and who makes the embeddings."""

import re
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, SecretStr, field_validator

from conserver import models, usage


class Options(models.ModelOptions):
    """Which collection, how to get in, and who makes the embeddings."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True)

    host: str = Field(default="localhost", description="The Milvus server.")
    port: int = Field(default=19530, ge=1, le=65535, description="Its port for gRPC.")
    token: SecretStr = Field(default=SecretStr(""), description="`user:password`, or an API key of Zilliz Cloud.")
    secure: bool = Field(default=False, description="Whether the connection is encrypted.")
    database: str = Field(default="", description="The database in Milvus; unset is its default one.")
    collection_name: str = Field(
        default="vcons", max_length=255, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="The collection."
    )
    create_collection_if_missing: bool = Field(
        default=False, description="Make the collection if it is not there; the options of the index are for that."
    )
    skip_if_exists: bool = Field(default=True, description="Do not embed a text again that is there already.")
    model: str = Field(
        default="text-embedding-3-small",
        validation_alias=AliasChoices("embedding_model", "model"),
        description="Name of the embedding model, as the service knows it.",
    )
    embedding_dim: int = Field(default=1536, ge=1, le=32768, description="How many numbers its embeddings have.")
    index_type: Literal["IVF_FLAT", "IVF_SQ8", "IVF_PQ", "HNSW", "ANNOY", "FLAT", "AUTOINDEX"] = Field(
        default="IVF_FLAT", description="The kind of index; Milvus 2.4 and later have no ANNOY."
    )
    metric_type: Literal["L2", "IP", "COSINE"] = Field(default="L2", description="What is near.")
    nlist: int = Field(default=128, ge=1, le=65536, description="Clusters of an IVF index.")
    m: int = Field(default=16, ge=2, le=2048, description="Edges of a node of an HNSW index.")
    ef_construction: int = Field(default=200, ge=1, description="Candidates while an HNSW index is built.")
    pq_m: int = Field(default=8, ge=1, description="Parts of a vector in IVF_PQ; it divides `embedding_dim`.")
    pq_nbits: int = Field(default=8, ge=1, le=64, description="Bits of each part in IVF_PQ.")
    n_trees: int = Field(default=50, ge=1, le=1024, description="Trees of an ANNOY index.")
    milvus_timeout: float = Field(default=10.0, gt=0, description="Seconds for one request to Milvus.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request to the embedding service.")
    retry_secs: float = Field(
        default=30.0, ge=0, description="Seconds in which a failed request to it is repeated, up to 6 times."
    )
    temperature: float | None = Field(default=None, description="Of no effect: embeddings have none.")

    @field_validator("token", mode="before")
    @classmethod
    def _null_is_no_token(cls, value: Any) -> Any:
        return usage.plain_key(value)

    @field_validator("host")
    @classmethod
    def _is_host(cls, host: str) -> str:
        if not re.fullmatch(r"[\w.-]+", host):
            raise ValueError("is no name of a host: write it as milvus.example, and its port as port")
        return host

    @property
    def index(self) -> dict[str, Any]:
        """The index of a new collection, in the words of Milvus."""
        params = {
            "IVF_FLAT": {"nlist": self.nlist},
            "IVF_SQ8": {"nlist": self.nlist},
            "IVF_PQ": {"nlist": self.nlist, "m": self.pq_m, "nbits": self.pq_nbits},
            "HNSW": {"M": self.m, "efConstruction": self.ef_construction},
            "ANNOY": {"n_trees": self.n_trees},
        }
        return {
            "index_type": self.index_type,
            "metric_type": self.metric_type,
            "params": params.get(self.index_type, {}),
        }
