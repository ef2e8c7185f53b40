"""The computation of layers: weights that stay as stored, norms, rotary embeddings, attention, experts.

Modules take tensors and declare no shapes; sizes that shapes do not give come from `loadmaster.architectures.model`.
Shape suffixes: T tokens of this call, S tokens in the cache after it,
H hidden, N heads, D head dim, K selected tokens or experts, E experts, R rank of a latent, I intermediate, V vocabulary.
"""
