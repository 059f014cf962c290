"""Which sizes a dataset is trained at, and which of them each image gets. A batch holds one size only."""

from __future__ import annotations

from hcpdiff.data.buckets.base import Assignment as Assignment
from hcpdiff.data.buckets.base import Bucket as Bucket
from hcpdiff.data.buckets.base import nearest as nearest
from hcpdiff.data.buckets.fixed import FixedBucket as FixedBucket
from hcpdiff.data.buckets.grid import RatioGridBucket as RatioGridBucket
from hcpdiff.data.buckets.kmeans import kmeans as kmeans
from hcpdiff.data.buckets.long_edge import LongEdgeBucket as LongEdgeBucket
from hcpdiff.data.buckets.ratio import RatioBucket as RatioBucket
from hcpdiff.data.buckets.ratio_size import RatioSizeBucket as RatioSizeBucket
from hcpdiff.data.buckets.saved import load_sizes as load_sizes
from hcpdiff.data.buckets.saved import save_sizes as save_sizes
from hcpdiff.data.buckets.size import SizeBucket as SizeBucket
