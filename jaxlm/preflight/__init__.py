"""Ahead-of-time compilation for a pod, without having one."""
