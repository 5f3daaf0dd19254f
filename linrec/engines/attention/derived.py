"""Attention whose keys and values come out of something smaller that is cached in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from linrec.engines.attention.cache import empty_cache
from linrec.engines.attention.engine import Attending, Operands


class LatentCache(NamedTuple):
    """latent ``[B, L, C]``, k_rope ``[B, L, R]``, length ``[B]``."""

    latent: Tensor
    k_rope: Tensor
    length: Tensor


@dataclass
class LatentTerms(Attending):
    """q ``[B, T, H, K + R]``, latent ``[B, T, C]``, k_rope ``[B, T, R]``, w_k ``[H, C, K]``, w_v ``[H, C, V]``."""

    latent: Tensor
    k_rope: Tensor
    w_k: Tensor
    w_v: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The latent and the rotated key, shared by all heads."""
        return {"latent": self.latent, "k_rope": self.k_rope}

    def empty(self, segments: int) -> LatentCache:
        """A cache without tokens."""
        return empty_cache(LatentCache, (self.latent, self.k_rope), segments)

    def operands(self, columns: list[Tensor], one_by_one: bool) -> Operands:
        """Many queries: keys and values of every head. One: w_k goes to the query and w_v to the output."""
        latent, k_rope = columns
        w_k, w_v = self.w_k.to(latent.dtype), self.w_v.to(latent.dtype)
        if not one_by_one:
            k = torch.einsum("BLC,HCK->BLHK", latent, w_k)
            k_rope = repeat(k_rope, "B L R -> B L H R", H=k.shape[2])
            return Operands(
                self.q, torch.cat([k, k_rope], dim=-1), torch.einsum("BLC,HCV->BLHV", latent, w_v)
            )
        q, q_rope = self.q.split([w_k.shape[2], k_rope.shape[2]], dim=-1)
        absorbed = torch.einsum("BTHK,HCK->BTHC", q, w_k)
        return Operands(
            torch.cat([absorbed, q_rope], dim=-1),
            torch.cat([latent, k_rope], dim=-1)[:, :, None],
            latent[:, :, None],
            lambda o: torch.einsum("BTHC,HCV->BTHV", o, w_v),
        )


class SharedCache(NamedTuple):
    """shared ``[B, L, H, K]``, k_rope ``[B, L, H, R]``, v_own ``[B, L, H, V]``, length ``[B]``; R or V may be 0."""

    shared: Tensor
    k_rope: Tensor
    v_own: Tensor
    length: Tensor


@dataclass
class SharedTerms(Attending):
    """q ``[B, T, HQ, K + R]``; keys are [shared, k_rope], values [shared, v_own] (see SharedCache)."""

    shared: Tensor
    k_rope: Tensor
    v_own: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The common part and what keys and values have of their own."""
        return {"shared": self.shared, "k_rope": self.k_rope, "v_own": self.v_own}

    def empty(self, segments: int) -> SharedCache:
        """A cache without tokens."""
        return empty_cache(SharedCache, tuple(self.columns().values()), segments)

    def operands(self, columns: list[Tensor], one_by_one: bool) -> Operands:
        """A width of zero costs no copy."""
        shared, k_rope, v_own = columns
        k = torch.cat([shared, k_rope], dim=-1) if k_rope.shape[-1] else shared
        return Operands(self.q, k, torch.cat([shared, v_own], dim=-1) if v_own.shape[-1] else shared)


class FactorCache(NamedTuple):
    """a_k, a_v ``[B, L, R, H]``, b_k ``[B, L, R, K]``, b_v ``[B, L, R, V]``, length ``[B]``."""

    a_k: Tensor
    b_k: Tensor
    a_v: Tensor
    b_v: Tensor
    length: Tensor


@dataclass
class FactorTerms(Attending):
    """q ``[B, T, H, K]``; keys and values are means of R outer products a b (see FactorCache)."""

    a_k: Tensor
    b_k: Tensor
    a_v: Tensor
    b_v: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The factors."""
        return {"a_k": self.a_k, "b_k": self.b_k, "a_v": self.a_v, "b_v": self.b_v}

    def empty(self, segments: int) -> FactorCache:
        """A cache without tokens."""
        return empty_cache(FactorCache, tuple(self.columns().values()), segments)

    def operands(self, columns: list[Tensor], one_by_one: bool) -> Operands:
        """Keys and values of every head, built from the factors."""
        a_k, b_k, a_v, b_v = columns
        return Operands(self.q, outer_mean(a_k, b_k), outer_mean(a_v, b_v))


def outer_mean(a: Tensor, b: Tensor) -> Tensor:
    """(1/R) sum_r a_r b_r^T: ``[B, L, R, H], [B, L, R, K] -> [B, L, H, K]``."""
    return a.mT @ b / a.shape[2]
