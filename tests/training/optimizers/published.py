"""The published formulas, in float64 NumPy, written from the papers and not from our code: one function per optimiser
that takes a weight through a source of gradients and returns where it ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

Gradient = Callable[[ndarray, int], ndarray]
"""Of the weights at step t, counted from 0."""


def sgd(w: ndarray, grad: Gradient, steps: int, *, lr: float, mu: float = 0.0, l2: float = 0.0, nesterov: bool = False):
    v = np.zeros_like(w)
    for t in range(steps):
        g = grad(w, t) + l2 * w
        v = mu * v + g
        w = w - lr * (g + mu * v if nesterov else v)
    return w


def adagrad(w: ndarray, grad: Gradient, steps: int, *, lr: float, eps: float = 1e-10):
    total = np.zeros_like(w)
    for t in range(steps):
        g = grad(w, t)
        total = total + g**2
        w = w - lr * g / (np.sqrt(total) + eps)
    return w


def rmsprop(w: ndarray, grad: Gradient, steps: int, *, lr: float, rho: float, eps: float):
    mean = np.zeros_like(w)
    for t in range(steps):
        g = grad(w, t)
        mean = rho * mean + (1 - rho) * g**2
        w = w - lr * g / (np.sqrt(mean) + eps)
    return w


def adam(w: ndarray, grad: Gradient, steps: int, *, lr, betas, eps, l2: float = 0.0, shrink: float = 0.0):
    m, v, (b1, b2) = np.zeros_like(w), np.zeros_like(w), betas
    for t in range(steps):
        g = grad(w, t) + l2 * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
        w = w - shrink * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w


def adafactor(w: ndarray, grad: Gradient, steps: int, *, lr: float, wd: float, eps2: float = 1e-3):
    """Shazeer and Stern's algorithm 4 and 5 with relative steps, as PyTorch dates them (min(lr, 1 / sqrt(t)))."""
    eps1 = np.finfo(w.dtype).eps
    row, col = np.zeros((*w.shape[:-1], 1)), np.zeros((*w.shape[:-2], 1, w.shape[-1]))
    for t in range(1, steps + 1):
        g = grad(w, t - 1)
        beta2, rho = 1 - t**-0.8, min(lr, 1 / np.sqrt(t))
        alpha = max(eps2, np.sqrt((w**2).mean())) * rho
        w = w * (1 - lr * wd)
        row = beta2 * row + (1 - beta2) * (g**2).mean(-1, keepdims=True)
        col = beta2 * col + (1 - beta2) * (g**2).mean(-2, keepdims=True)
        v = row @ col / np.maximum(row.mean(-2, keepdims=True), eps1)
        u = g / np.sqrt(np.maximum(v, eps1**2))
        w = w - alpha * u / max(1.0, np.sqrt((u**2).mean()))
    return w


def lion(w: ndarray, grad: Gradient, steps: int, *, lr, betas, wd):
    m, (b1, b2) = np.zeros_like(w), betas
    for t in range(steps):
        g = grad(w, t)
        c = b1 * m + (1 - b1) * g
        w = w - lr * (np.sign(c) + wd * w)
        m = b2 * m + (1 - b2) * g
    return w


def sophia(w: ndarray, grad: Gradient, diagonal: Gradient, steps: int, *, lr, betas, gamma, eps, wd, every):
    m, h, (b1, b2) = np.zeros_like(w), np.zeros_like(w), betas
    for t in range(steps):
        g = grad(w, t)
        m = b1 * m + (1 - b1) * g
        if t % every == 0:
            h = b2 * h + (1 - b2) * diagonal(w, t)
        w = w - lr * wd * w
        w = w - lr * np.clip(m / np.maximum(gamma * h, eps), -1, 1)
    return w


def schedule_free(w: ndarray, grad: Gradient, rates: list[float], *, beta, wd, adam_beta2=None, eps=1e-8):
    """x, y, z by name; returns (x, y). The weight of a step is its rate squared, in a warmup that only rises."""
    x, z, v, total = w.copy(), w.copy(), np.zeros_like(w), 0.0
    y = (1 - beta) * z + beta * x
    for t, lr in enumerate(rates):
        g = grad(y, t)
        if adam_beta2 is not None:
            v = adam_beta2 * v + (1 - adam_beta2) * g**2
            g = g / (np.sqrt(v / (1 - adam_beta2 ** (t + 1))) + eps)
        z = z - lr * (g + wd * y)
        total += lr**2
        c = lr**2 / total
        x = (1 - c) * x + c * z
        y = (1 - beta) * z + beta * x
    return x, y


def prodigy(w: ndarray, grad: Gradient, steps: int, *, lr=1.0, betas=(0.9, 0.999), eps=1e-8, d0=1e-6):
    x0, d, r, (b1, b2) = w.copy(), d0, 0.0, betas
    m, v, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t in range(steps):
        g = grad(w, t)
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d**2 * g**2
        r = np.sqrt(b2) * r + (1 - np.sqrt(b2)) * lr * d**2 * (g * (x0 - w)).sum()
        s = np.sqrt(b2) * s + (1 - np.sqrt(b2)) * lr * d**2 * g
        w = w - lr * d * m / (np.sqrt(v) + d * eps)
        d = max(d, r / np.abs(s).sum())
    return w, d


def shares_of_blocks(value: ndarray, block: int, signed: bool) -> ndarray:
    """To 8 bits and back: every value the nearest of the levels times its block's largest magnitude."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        parts = 2**exponent * (1 if signed else 2)
        for part in range(parts):
            middle = 0.1 + 0.9 * (part + 0.5) / parts
            levels += [middle * 10.0 ** (exponent - 6)] + ([-middle * 10.0 ** (exponent - 6)] if signed else [])
    levels_L = np.sort(np.array(levels))
    assert len(levels_L) == 256
    result = np.empty_like(value)
    for start in range(0, len(value), block):
        part = value[start : start + block]
        largest = np.abs(part).max()
        nearest = np.abs(part[:, None] / max(largest, 1e-30) - levels_L).argmin(1)
        result[start : start + block] = levels_L[nearest] * largest
    return result


def adamw_8bit(w: ndarray, grad: Gradient, steps: int, *, lr, betas, eps, wd, block):
    m, v, (b1, b2) = np.zeros_like(w), np.zeros_like(w), betas
    for t in range(steps):
        g = grad(w, t)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w * (1 - lr * wd)
        w = w - lr * (m / (1 - b1 ** (t + 1))) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
        m, v = shares_of_blocks(m, block, True), shares_of_blocks(v, block, False)
    return w
