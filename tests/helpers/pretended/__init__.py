"""A GPU pretended in CPU memory: every stage runs on it, and mixed devices, waits and kernels show without a card.

``device`` has the tensors, ``rules`` what CUDA would reject or wait for, ``autocast`` CUDA's autocast lists and
``training`` Lightning's accelerator. What it cannot show: limits of cuDNN and flash kernels, races, CUDA graphs,
memory, time, NCCL. The backend stays for the life of the process.
"""
