(* What every theorem rests on. check.sh wants "Closed under the global context" for each: nothing is assumed. *)

From ssd Require Import matrices moments laws modes.

(* matrices.v *)
Print Assumptions isotropic_transition.
Print Assumptions isotropic_transition_norm.
Print Assumptions transition_gain_unique.
Print Assumptions chain_cov.
Print Assumptions chain_covariance.
Print Assumptions posterior_cov_forms_agree.
Print Assumptions marginal_unit.
Print Assumptions posterior_covariance.
Print Assumptions posterior_noise_free.
Print Assumptions joint_cov_forms_agree.
Print Assumptions isotropic_posterior_cov.
Print Assumptions ddpm.
Print Assumptions blur_mul.
Print Assumptions blurring_diffusion.
Print Assumptions blur_opnorm.
Print Assumptions posterior_in_family.
Print Assumptions family_admissible.
Print Assumptions family_admissible_norm.

(* moments.v *)
Print Assumptions law_linear.
Print Assumptions total_covariance.

(* laws.v *)
Print Assumptions cov_covariance.
Print Assumptions forward_transition.
Print Assumptions transition_chain.
Print Assumptions posterior_mean_forms_agree.
Print Assumptions error_uncorrelated.
Print Assumptions error_law.
Print Assumptions error_least.
Print Assumptions posterior.
Print Assumptions isotropic_posterior.
Print Assumptions same_marginal_family.
Print Assumptions reverse_step.
Print Assumptions exact_step.
Print Assumptions exact_marginal.
Print Assumptions plain_step_lacks.
Print Assumptions marginal_kept.

(* modes.v *)
Print Assumptions deterministic_end.
Print Assumptions destroyed_modes.
Print Assumptions destroyed_modes_drawn.
Print Assumptions ddim.
Print Assumptions eta_family.
Print Assumptions eta_one.
Print Assumptions eta_zero.
Print Assumptions scale_matched_admissible.
Print Assumptions scale_matched_exact.
Print Assumptions best_mode_continuous.
Print Assumptions best_mode_unmatched.
