"""Whether a sparse autoencoder fits a store: its hookpoint, and what it was trained on."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from actlas.analysis.sae.differences import check_trained_on
from actlas.store.errors import SaeError

if TYPE_CHECKING:
    from actlas.analysis.sae.model import SparseAutoencoder
    from actlas.store.read.reader import StoreReader


def check_sae(
    store: StoreReader, sae: SparseAutoencoder, hookpoint: str | None, accept: Collection[str] = ()
) -> tuple[str, list[str]]:
    """Return the hookpoint to encode, and what a user should know of the autoencoder's training.

    Parameters
    ----------
    store : StoreReader
        The store.
    sae : SparseAutoencoder
        The sparse autoencoder, loaded from a folder.
    hookpoint : str, optional
        The hookpoint that is given, if any.
    accept : collection of str
        Fields of ``cfg.json`` that may differ; see
        :func:`~actlas.analysis.sae.differences.check_trained_on`.

    Raises
    ------
    SaeError
        The autoencoder was trained on other activations than the hookpoint's.
    """
    hook = sae.trained_on.get("hook_name")
    if sae.hookpoint is None and hook is not None and "hook_name" not in accept:
        raise SaeError(
            f"this sparse autoencoder was trained on {hook[:100]!r}, which stores do not have "
            f"under a name; {store.path} has {', '.join(store.activations)}. Extract that tensor "
            "by its module's path. To encode other rows with it nevertheless: --accept hook_name "
            "--hookpoint NAME.",
            field="hook_name",
        )
    named = fitting_hookpoint(store, sae, hookpoint, accept)
    return named, check_trained_on(sae.trained_on, store.plan, named, accept)


def fitting_hookpoint(
    store: StoreReader, sae: SparseAutoencoder, hookpoint: str | None, accept: Collection[str]
) -> str:
    """Return the hookpoint to encode, which must be in the store and have ``d_in`` units.

    Parameters
    ----------
    store : StoreReader
        The store.
    sae : SparseAutoencoder
        The sparse autoencoder.
    hookpoint : str, optional
        The hookpoint that is given; by default that of the training.
    accept : collection of str
        With ``hook_name``, the hookpoint may be another than that of the training.

    Raises
    ------
    SaeError
        The store has no such hookpoint, or the autoencoder was trained on another.
    """
    if hookpoint is not None:
        hookpoint = store.name_of(hookpoint)
    if hookpoint is None and sae.hookpoint is None:
        raise SaeError(
            "this sparse autoencoder does not say which hookpoint it was trained on: give "
            f"--hookpoint, one of {', '.join(store.activations)}.",
            field="hookpoint",
        )
    trained = same_place(sae.hookpoint) if sae.hookpoint else []
    modules = {each.module: each.name for each in store.plan.hookpoints if each.side == "output"}
    if sae.hookpoint in modules:  # SAELens names modules of transformers' own models
        trained += same_place(modules[sae.hookpoint])
    if hookpoint and trained and hookpoint not in trained and "hook_name" not in accept:
        raise SaeError(
            f"this sparse autoencoder was trained on {sae.hookpoint}, got --hookpoint {hookpoint}. "
            "Leave --hookpoint out, or give another sparse autoencoder. To encode these rows with "
            "it nevertheless: --accept hook_name.",
            field="hookpoint",
        )
    wanted = [hookpoint] if hookpoint else trained
    named = next((name for name in wanted if name in store.activations), None)
    if named is None:
        raise SaeError(
            f"{'got --hookpoint' if hookpoint else 'this sparse autoencoder was trained on'} "
            f"{wanted[0]}; {store.path} has {', '.join(store.activations)}.",
            field="hookpoint",
        )
    width = store.activations[named].shape[1]
    if width != sae.d_in:
        raise SaeError(
            f"this sparse autoencoder reads rows of {sae.d_in} units; {named} of {store.path} has "
            f"{width}. It belongs to another model.",
            field="d_in",
        )
    return named


def same_place(hookpoint: str) -> list[str]:
    """Return the names of a hookpoint's tensor: a block's input is the output of the one before.

    Parameters
    ----------
    hookpoint : str
        The name of a hookpoint.

    Examples
    --------
    >>> same_place("resid_pre.3"), same_place("resid_post.0"), same_place("resid_pre.0")
    (['resid_pre.3', 'resid_post.2'], ['resid_post.0', 'resid_pre.1'], ['resid_pre.0'])
    """
    side, _, layer = hookpoint.partition(".")
    if side == "resid_pre" and layer.isdecimal() and int(layer) > 0:
        return [hookpoint, f"resid_post.{int(layer) - 1}"]
    if side == "resid_post" and layer.isdecimal():
        return [hookpoint, f"resid_pre.{int(layer) + 1}"]
    return [hookpoint]
