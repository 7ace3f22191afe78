"""Fewer experts on MoE targets (HookMoE): measurement, plans, the repair module, and a small MoE target to try it on."""
