"""A technique in a distribution of its own: the whole of what a third party writes."""

from typing import ClassVar

from effbench.plugin import Technique, hookimpl


class FreezeEmbeddings(Technique):
    """Train everything but the input embeddings."""

    name: ClassVar = "freeze_embeddings"
    family: ClassVar = "peft"

    def apply(self, model, ctx):
        model.get_input_embeddings().requires_grad_(False)
        return model


@hookimpl
def register_techniques(register):
    register(FreezeEmbeddings)
