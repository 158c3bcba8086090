"""Similarity of neural representations: SVCCA and its relatives.

Layers are arrays [datapoints, neurons]; rows of two layers are the same datapoints.
"""

from svcca_jax.cca import CCA as CCA
from svcca_jax.cca import MeanCCA as MeanCCA
from svcca_jax.cca import Variates as Variates
from svcca_jax.cca import canonical_variates as canonical_variates
from svcca_jax.cca import cca as cca
from svcca_jax.cca import cca_from_moments as cca_from_moments
from svcca_jax.cca import leading_mean as leading_mean
from svcca_jax.cka import CKA as CKA
from svcca_jax.cka import LinearCKA as LinearCKA
from svcca_jax.cka import linear_cka as linear_cka
from svcca_jax.cka import linear_cka_from_moments as linear_cka_from_moments
from svcca_jax.fourier import FourierCCA as FourierCCA
from svcca_jax.fourier import MeanFourierCCA as MeanFourierCCA
from svcca_jax.fourier import fourier_cca as fourier_cca
from svcca_jax.keep import AllDirections as AllDirections
from svcca_jax.keep import FixedCount as FixedCount
from svcca_jax.keep import Keep as Keep
from svcca_jax.keep import SumFraction as SumFraction
from svcca_jax.keep import VarianceFraction as VarianceFraction
from svcca_jax.measure import Measure as Measure
from svcca_jax.moments import Moments as Moments
from svcca_jax.moments import init_moments as init_moments
from svcca_jax.moments import merge_moments as merge_moments
from svcca_jax.moments import merge_over_axis as merge_over_axis
from svcca_jax.moments import update_moments as update_moments
from svcca_jax.pairwise import over_checkpoints as over_checkpoints
from svcca_jax.pairwise import pairwise as pairwise
from svcca_jax.pairwise import pairwise_from_moments as pairwise_from_moments
from svcca_jax.pca import PCA as PCA
from svcca_jax.pca import pca as pca
from svcca_jax.pca import pca_from_moments as pca_from_moments
from svcca_jax.pls import PLS as PLS
from svcca_jax.pls import TotalPLS as TotalPLS
from svcca_jax.pls import pls as pls
from svcca_jax.pls import pls_from_moments as pls_from_moments
from svcca_jax.procrustes import Procrustes as Procrustes
from svcca_jax.procrustes import ProcrustesSimilarity as ProcrustesSimilarity
from svcca_jax.procrustes import procrustes_distance as procrustes_distance
from svcca_jax.procrustes import procrustes_from_moments as procrustes_from_moments
from svcca_jax.pwcca import PWCCA as PWCCA
from svcca_jax.pwcca import MeanPWCCA as MeanPWCCA
from svcca_jax.pwcca import pwcca as pwcca
from svcca_jax.pwcca import pwcca_from_moments as pwcca_from_moments
from svcca_jax.significance import Bartlett as Bartlett
from svcca_jax.significance import bartlett_test as bartlett_test
from svcca_jax.significance import random_baseline as random_baseline
from svcca_jax.significance import random_coefficients as random_coefficients
from svcca_jax.stream import accumulate as accumulate
from svcca_jax.svcca import MeanSVCCA as MeanSVCCA
from svcca_jax.svcca import svcca as svcca
from svcca_jax.svcca import svcca_from_moments as svcca_from_moments
