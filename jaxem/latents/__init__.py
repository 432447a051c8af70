"""Latent structures: local scores go in, the log-partition comes out, and its gradient is the posterior.

Write local scores with any code, sum the latent variables out with one of these `log_partition` functions, and
hand the result to `jaxem.log_marginal`, or to any loss: all are differentiable, and can be batched by `jax.vmap`.

- `mixture`: one discrete variable a datum.
- `chain`: a Markov chain of discrete states.
- `tree`: a discrete character along a tree.
- `gaussian_chain`: a chain of Gaussian states, each seen through noise; `kalman`: the same for evidence however sharp.
- `superposition`: counts that several Poisson sources share.
"""

from jaxem.latents import chain, gaussian_chain, kalman, mixture, superposition, tree

__all__ = ["chain", "gaussian_chain", "kalman", "mixture", "superposition", "tree"]
