"""What is said of parameter sharing: the statements that the recipes' claims are about."""

from __future__ import annotations

__all__ = ["STATEMENTS"]

#: By claim id; a recipe's docstring says what it measures of one, and what decides.
STATEMENTS: dict[str, str] = {
    "C01": "A 3×3 filter on a 32×32 image needs 9,000 parameters when each of 30×30 positions "
    "has its own, and 10 when they share one.",
    "C02": "A fully connected layer from 32·32·3 to 32·32·3 needs 9,437,184 weights, a 3×3 "
    "convolution from 3 to 16 channels 448 parameters.",
    "C03": "A convolution is a fully connected layer whose matrix is doubly block Toeplitz: "
    "constant along its diagonals.",
    "C04": "Sharing over positions gives translation equivariance; a global maximum over "
    "positions makes it invariance.",
    "C05": "The gradient of a shared parameter is the sum of its sites' gradients.",
    "C06": "In Siamese towers the gradients of both add into one set of weights, and both "
    "inputs land in one space.",
    "C07": "The initial scale depends on fan-in alone, not on how many sites use the value.",
    "C08": "An autoencoder with the decoder tied to the encoder has half the matrices and a "
    "smaller gap between training and test.",
    "C09": "A right tie cuts variance at no bias, an approximate one costs a little bias, a "
    "wrong one more than it saves.",
    "C10": "The capacity of an unshared model grows with the input's size, that of a shared "
    "one with the filter's alone.",
    "C11": "For the same confidence in a filter about 7,600 images are needed unshared, about "
    "10 shared.",
    "C12": "48 interchangeable hidden units give 48! equal solutions, three shared filters "
    "3! = 6; many flat directions disappear.",
    "C13": "A recurrent network is a deep one whose layers are tied over time.",
    "C14": "Tied input embedding and output classifier are one tensor: weight decay acts once, "
    "and rules by role are impossible.",
    "C15": "Rotated copies of one kernel make a network rotation-equivariant by construction; "
    "with independent kernels that is lost.",
    "C16": "A palindromic filter projects on the symmetric subspace: deaf to antisymmetric "
    "noise.",
    "C17": "A graph network can share one transform over all hops, with one scalar a hop.",
    "C18": "A U-Net's decoder filters can be tied to its encoder filters.",
    "C19": "All hidden layers tied is a recurrent network; the parameters saved can be spent "
    "on width.",
    "C20": "Tied depth in the limit is an ordinary differential equation.",
    "C21": "In a hidden Markov model with tied emissions, Baum–Welch pools the tied states' "
    "statistics: better estimates from less data.",
    "C22": "A pair HMM with tied insertions does not change when the sequences are swapped, "
    "and the symmetry is a testable hypothesis.",
    "C23": "One crystal, two instruments: structure tied, instruments free.",
    "C24": "A periodic solution of a differential equation by construction, or softly through "
    "one shared unknown boundary value.",
    "C25": "Keys and values shared across layers, or between encoder and decoder: fewer "
    "parameters and a shared space, at some loss of expressiveness.",
    "C26": "A one-dimensional filter with a global maximum finds a DNA motif wherever it "
    "stands.",
    "C27": "The same for time series: heartbeats, spoken words, markets.",
    "C28": "The reference CNN on MNIST digits: two convolutions, two dense layers, ten epochs "
    "of Adam.",
    "C29": "Sharing maps many parameters onto a low-dimensional subspace; it differs from "
    "plain least squares, from a penalty and from selecting features.",
    "C30": "Sharing can cost accuracy, in more complex models and across kinds of model: what "
    "a tie says against itself.",
    "C31": "Parameters that several data sets share are estimated from all of them at once, "
    "more precisely than from any one.",
    "C32": "Sharing lowers complexity and computing cost.",
}
