"""Linear operators on the trailing axes of arrays of any array-API namespace."""

from ssdcore.operators.base import LinearOperator
from ssdcore.operators.blur import Blur
from ssdcore.operators.functional import Functional
from ssdcore.operators.matrix import Identity, Matrix, Separable
from ssdcore.operators.resize import Resize

__all__ = ["Blur", "Functional", "Identity", "LinearOperator", "Matrix", "Resize", "Separable"]
