"""Content of ``recipes.yaml``: where the networks come from, and how the variants are made of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import Field, model_validator

from opd.examples.wheels import Package, PackageFile
from opd.host.documents import DocumentModel, read_as
from opd.host.paths import package_path


class NetworkSource(DocumentModel):
    """A network in ONNX form."""

    package: str
    """name of a package of this file"""
    model: PackageFile
    characters: PackageFile | None = None
    """dictionary of a recogniser, unless the model's metadata contain it"""


class Recipe(DocumentModel):
    """Recipe of one variant: a network, and what is changed about it."""

    network: str
    """name of a network of this file"""
    settings: dict[str, Any]
    """arguments of the class, such as the size of the network's input"""
    ascii: bool = False
    """true to reduce the network's last layer to the printable ASCII characters"""
    int8: bool = False
    """true to store the weights of matrix products as 8-bit integers"""


class TaskRecipes(DocumentModel):
    """The variants of one task."""

    metric: str
    """what the accuracy of the variants is"""
    model_class: str = Field(alias="class")
    """module:Class that serves the variants"""
    candidates: dict[str, Recipe]
    """all variants that were measured, by name"""
    chosen: list[str]
    """names of the variants of the pipeline, by accuracy"""

    @model_validator(mode="after")
    def _chosen_are_candidates(self) -> TaskRecipes:
        if missing := set(self.chosen) - set(self.candidates):
            raise ValueError(f"chosen variants {sorted(missing)} are not among the candidates")
        return self


class Recipes(DocumentModel):
    """The whole file."""

    packages: dict[str, Package]
    networks: dict[str, NetworkSource]
    tasks: dict[str, TaskRecipes]

    @model_validator(mode="after")
    def _names_are_defined(self) -> Recipes:
        recipes = [recipe for task in self.tasks.values() for recipe in task.candidates.values()]
        if missing := {recipe.network for recipe in recipes} - set(self.networks):
            raise ValueError(f"networks {sorted(missing)} of candidates are not defined")
        if missing := {network.package for network in self.networks.values()} - set(self.packages):
            raise ValueError(f"packages {sorted(missing)} of networks are not defined")
        return self


@cache
def load_recipes() -> Recipes:
    """Read ``recipes.yaml``."""
    return read_as(Recipes, package_path("examples", "ocr", "recipes.yaml"))
