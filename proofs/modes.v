(* The modes of an operator: reverse steps between (11), which draws no noise where none is needed, and theorem 3, (12);
   and scale-matched noise (9), which keeps the ratio of the mode kept best. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From ssd Require Import matrices.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- (11) and (12): from no noise on the kept modes to theorem 3 ---- *)

Section Modes.
Variables (R : rcfType) (m n r : nat).
(* A thin singular value decomposition of M, singular values d > 0: V holds the modes that M keeps. *)
Variables (U : 'M[R]_(m, r)) (V : 'M[R]_(n, r)) (d : 'rV[R]_r).
Hypothesis orthoU : U^T *m U = 1%:M.
Hypothesis orthoV : V^T *m V = 1%:M.
Hypothesis d_gt0 : forall i, 0 < d 0 i.
Let M : 'M[R]_(m, n) := U *m diag_mx d *m V^T.
Variables (sigma_s sigma_t : R).
Hypothesis sigma_s_ge0 : 0 <= sigma_s.
Hypothesis sigma_t_gt0 : 0 < sigma_t.
Let S : 'M[R]_n := (sigma_s ^+ 2)%:M.
Let T : 'M[R]_m := (sigma_t ^+ 2)%:M.
Let rho := sigma_s ^+ 2 / sigma_t ^+ 2.

(* A gain that acts on the kept modes one by one. *)
Definition mode_gain (b : 'rV[R]_r) : 'M[R]_(n, m) := V *m diag_mx b *m U^T.
Definition deterministic_gain : 'M[R]_(n, m) := (sigma_s / sigma_t) *: (V *m U^T).
Definition eta_gain (eta : R) : 'M[R]_(n, m) :=
  mode_gain (\row_i (sigma_s / sigma_t * Num.sqrt (1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2)))).

Fact sigma_t_neq0 : sigma_t != 0. Proof. by rewrite gt_eqF. Qed.
Fact sigma_t2_neq0 : sigma_t ^+ 2 != 0. Proof. by rewrite sqrf_eq0 sigma_t_neq0. Qed.
Fact rho_ge0 : 0 <= rho. Proof. by rewrite divr_ge0 ?sqr_ge0. Qed.
Fact ratio2 : (sigma_s / sigma_t) ^+ 2 = rho. Proof. by rewrite expr_div_n. Qed.

Fact deterministicE : deterministic_gain = mode_gain (const_mx (sigma_s / sigma_t)).
Proof. by rewrite /mode_gain diag_const_mx mul_mx_scalar -scalemxAl. Qed.

Fact theorem_3_gain : gain M S T = mode_gain (rho *: d).
Proof.
rewrite isotropic_gain /mode_gain /M !trmx_mul trmxK tr_diag_mx mulmxA.
by rewrite linearZ /= -scalemxAr -scalemxAl.
Qed.

(* The modes that M destroys keep the whole variance, the kept ones what their gain leaves. *)
Lemma mode_cov b : family_cov (mode_gain b) S T =
  sigma_s ^+ 2 *: (1%:M - V *m V^T) + V *m diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2)) *m V^T.
Proof.
rewrite /family_cov /mode_gain !trmx_mul trmxK tr_diag_mx mul_mx_scalar -scalemxAl.
rewrite -!mulmxA (mulmxA U^T) orthoU mul1mx (mulmxA (diag_mx b)) mulmx_diag.
have -> : diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2))
    = (sigma_s ^+ 2)%:M - sigma_t ^+ 2 *: diag_mx (\row_i (b 0 i * b 0 i)).
  rewrite -diag_const_mx -linearZ -linearB /=; congr diag_mx.
  by apply/rowP => i; rewrite !mxE expr2.
rewrite mulmxBl mulmxBr mul_scalar_mx -scalemxAl -!scalemxAr scalerBr scalemx1 -/S.
by rewrite addrA subrK.
Qed.

(* On the kept modes only what their gains leave is seen. *)
Lemma kept_modes b : V^T *m family_cov (mode_gain b) S T *m V
  = diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2)).
Proof.
rewrite mode_cov; set D := diag_mx _; rewrite mulmxDr mulmxDl.
have -> : V^T *m (sigma_s ^+ 2 *: (1%:M - V *m V^T)) = 0.
  by rewrite -scalemxAr mulmxBr mulmx1 mulmxA orthoV mul1mx subrr scaler0.
by rewrite mul0mx add0r -!mulmxA orthoV mulmx1 mulmxA orthoV mul1mx.
Qed.

Lemma kept_posterior : V^T *m posterior_cov M S T *m V
  = diag_mx (\row_i (sigma_s ^+ 2 * (1 - rho * d 0 i ^+ 2))).
Proof.
have unitT : T \in unitmx by rewrite unitmxE det_scalar unitfE expf_neq0 ?sigma_t2_neq0.
rewrite -posterior_in_family //; try exact: symmetric_scalar.
rewrite theorem_3_gain kept_modes; congr diag_mx; apply/rowP => i; rewrite !mxE.
exact: kept_variance (elimN eqP sigma_t2_neq0).
Qed.

Lemma projection_psd : psd (1%:M - V *m V^T).
Proof.
have -> : 1%:M - V *m V^T = (1%:M - V *m V^T) *m (1%:M - V *m V^T)^T; last exact: psd_gram.
rewrite [(1%:M - _)^T]linearB /= tr_scalar_mx trmx_mul trmxK mulmxBl mul1mx mulmxBr mulmx1.
by rewrite mulmxA -(mulmxA V) orthoV mulmx1 subrr subr0.
Qed.

Lemma mode_covariance (b : 'rV[R]_r) : (forall i, sigma_t ^+ 2 * b 0 i ^+ 2 <= sigma_s ^+ 2) ->
  covariance (family_cov (mode_gain b) S T).
Proof.
move=> b_le; split; first by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
rewrite mode_cov; apply: psdD; first by apply: psdZ; [apply: sqr_ge0 | apply: projection_psd].
by apply/psd_congr/psd_diag => i; rewrite mxE subr_ge0.
Qed.

(* (11) is admissible whatever M is, draws noise of variance sigma_s^2 on the modes that M destroys, none on those it
   keeps, and is a multiple of a partial isometry. *)
Theorem deterministic_end :
  [/\ covariance (family_cov deterministic_gain S T),
      family_cov deterministic_gain S T = sigma_s ^+ 2 *: (1%:M - V *m V^T),
      family_cov deterministic_gain S T *m V = 0
    & deterministic_gain *m deterministic_gain^T *m deterministic_gain
      = (sigma_s / sigma_t) ^+ 2 *: deterministic_gain].
Proof.
have covE : family_cov deterministic_gain S T = sigma_s ^+ 2 *: (1%:M - V *m V^T).
  rewrite deterministicE mode_cov [X in diag_mx X](_ : _ = 0) ?raddf0 ?mulmx0 ?mul0mx ?addr0 //.
  by apply/rowP => i; rewrite !mxE expr_div_n mulrC divfK ?sigma_t2_neq0 // subrr.
split=> //.
- rewrite deterministicE; apply: mode_covariance => i.
  by rewrite mxE expr_div_n mulrC divfK ?sigma_t2_neq0.
- by rewrite covE -scalemxAl mulmxBl mul1mx -mulmxA orthoV mulmx1 subrr scaler0.
rewrite /deterministic_gain [(_ *: _)^T]linearZ /= trmx_mul trmxK -!scalemxAl -!scalemxAr -scalemxAl.
rewrite -!mulmxA (mulmxA U^T U) orthoU mul1mx (mulmxA V^T V) orthoV mul1mx.
by rewrite !scalerA expr2 -!mulrA.
Qed.

(* The kept modes are what M does not destroy, and the destroyed ones are drawn afresh. *)
Theorem destroyed_modes (w : 'cV[R]_n) : M *m w = 0 <-> V^T *m w = 0.
Proof.
split=> [Mw0|Vw0]; last by rewrite -mulmxA Vw0 mulmx0.
have dVw : diag_mx d *m (V^T *m w) = U^T *m (M *m w) by rewrite /M -!mulmxA (mulmxA U^T) orthoU mul1mx.
rewrite Mw0 mulmx0 in dVw; apply/colP => i; apply/eqP.
have /eqP := congr1 (fun v : 'cV_r => v i 0) dVw.
by rewrite mul_diag_mx !mxE mulf_eq0 (gt_eqF (d_gt0 i)).
Qed.

Theorem destroyed_modes_drawn (w : 'cV[R]_n) : M *m w = 0 -> family_cov deterministic_gain S T *m w = sigma_s ^+ 2 *: w.
Proof.
move=> /destroyed_modes Vw0; have [_ -> _ _] := deterministic_end.
by rewrite -scalemxAl mulmxBl mul1mx -mulmxA Vw0 mulmx0 subr0.
Qed.

(* (4), as theorem 1 has it, bounds every singular value. *)
Lemma mode_bound i : covariance (transition_cov M S T) -> rho * d 0 i ^+ 2 <= 1.
Proof.
pose e : 'cV[R]_r := delta_mx i 0; move/isotropic_transition=> /(_ (U *m e)).
have unit_e : sqnorm e = 1 by rewrite /sqnorm /dot trmx_delta mul_delta_mx mxE !eqxx.
have -> : M^T *m (U *m e) = V *m (d 0 i *: e).
  rewrite /M !trmx_mul trmxK tr_diag_mx -!mulmxA (mulmxA U^T) orthoU mul1mx mul_diag_mx.
  congr (_ *m _); apply/colP => j; rewrite !mxE eqxx andbT.
  by case: eqP => [->|_]; rewrite ?mulr1 ?mulr0.
rewrite !sqnorm_mulmx (mulmxA V^T) (mulmxA U^T) orthoU orthoV !mul1mx -!/(sqnorm _) sqnormZ unit_e !mulr1.
by rewrite /rho [_ / _ * _]mulrAC ler_pdivr_mulr ?mul1r // exprn_gt0.
Qed.

(* (12): eta scales the standard deviation of theorem 3's noise on the kept modes. *)
Theorem eta_family eta : 0 <= eta <= 1 -> covariance (transition_cov M S T) ->
  [/\ covariance (family_cov (eta_gain eta) S T),
      V^T *m family_cov (eta_gain eta) S T *m V = eta ^+ 2 *: (V^T *m posterior_cov M S T *m V)
    & forall w : 'cV[R]_n, M *m w = 0 -> family_cov (eta_gain eta) S T *m w = sigma_s ^+ 2 *: w].
Proof.
case/andP=> eta_ge0 eta_le1 admissible.
have rest_ge0 i : 0 <= 1 - rho * d 0 i ^+ 2 by rewrite subr_ge0 mode_bound.
have eta2_le1 : eta ^+ 2 <= 1 by rewrite expr_le1.
have root_ge0 i : 0 <= 1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2).
  rewrite subr_ge0 mulr_ile1 ?sqr_ge0 // ler_subl_addr ler_addl.
  by rewrite mulr_ge0 ?rho_ge0 ?sqr_ge0.
have variance : \row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * (\row_i (sigma_s / sigma_t *
      Num.sqrt (1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2)))) 0 i ^+ 2)
    = \row_i (eta ^+ 2 * (sigma_s ^+ 2 * (1 - rho * d 0 i ^+ 2))) :> 'rV_r.
  apply/rowP => i; rewrite !mxE exprMn ratio2 sqr_sqrtr //.
  by exact: eta_variance (elimN eqP sigma_t2_neq0).
split.
- apply: mode_covariance => i; have /rowP /(_ i) := variance.
  rewrite [LHS]mxE [RHS]mxE -subr_ge0 => ->.
  by rewrite !mulr_ge0 ?sqr_ge0.
- rewrite kept_modes kept_posterior variance -linearZ /=; congr diag_mx.
  by apply/rowP => i; rewrite !mxE.
move=> w /destroyed_modes Vw0; rewrite mode_cov mulmxDl -scalemxAl mulmxBl mul1mx -!mulmxA Vw0.
by rewrite !mulmx0 subr0 addr0.
Qed.

(* eta = 1 is theorem 3 and eta = 0 is (11). *)
Theorem eta_one : eta_gain 1 = gain M S T.
Proof.
rewrite theorem_3_gain /eta_gain; congr mode_gain; apply/rowP => i; rewrite !mxE expr1n mul1r opprB addrC subrK.
rewrite -ratio2 -exprMn sqrtr_sqr ger0_norm ?mulr_ge0 ?invr_ge0 ?(ltW (d_gt0 i)) ?(ltW sigma_t_gt0) //.
by rewrite mulrA expr2.
Qed.

Theorem eta_zero : eta_gain 0 = deterministic_gain.
Proof.
rewrite deterministicE /eta_gain; congr mode_gain; apply/rowP => i.
by rewrite !mxE expr0n mul0r subr0 sqrtr1 mulr1.
Qed.

End Modes.

(* At a step that keeps the size, M = c I, (11) is DDIM: x_t = a_t x_0 + sigma_t e goes to a_s x_0 + sigma_s e. *)
Theorem ddim (R : rcfType) n (sigma_s sigma_t a_s a_t : R) (x_0 e : 'cV[R]_n) : sigma_t != 0 ->
  let x_t := a_t *: x_0 + sigma_t *: e in
  a_s *: x_0 + deterministic_gain 1%:M 1%:M sigma_s sigma_t *m (x_t - a_t *: x_0) = a_s *: x_0 + sigma_s *: e.
Proof.
move=> sigma_t_neq0 x_t; rewrite /x_t [a_t *: _ + _]addrC addrK /deterministic_gain tr_scalar_mx mulmx1 scalemx1.
by rewrite mul_scalar_mx scalerA divfK.
Qed.

(* ---- (9): scale-matched noise ----

   With the noise-to-signal ratio multiplied by the exact norm at every change of size, (4) holds for every operator,
   and the ratio of the mode that is kept best does not jump. *)

Section Matched.
Variable R : realFieldType.
(* At time k the state has size dim k; change k is the degradation from k to k + 1, N k its norm; the base
   noise-to-signal ratio is base k, the signal scale a k. Where the size stays, change k = 1 and N k = 1. *)
Variables (dim : nat -> nat) (change : forall k, 'M[R]_(dim k.+1, dim k)) (N base a : nat -> R).
Hypothesis norms : forall k, opnorm (N k) (change k).
Hypothesis base_ge0 : forall k, 0 <= base k.
Hypothesis base_grows : forall k, base k <= base k.+1.
Hypothesis a_gt0 : forall k, 0 < a k.

Definition kappa t := \prod_(i < t) N i.
Definition sigma t := a t * base t * kappa t.

(* R_s->t for t = k + s. *)
Fixpoint degradation s k : 'M[R]_(dim (k + s), dim s) :=
  if k is k'.+1 then change (k' + s) *m degradation s k' else 1%:M.

Definition transition_op s k : 'M[R]_(dim (k + s), dim s) := (a (k + s) / a s) *: degradation s k.

Fact N_ge0 k : 0 <= N k. Proof. by case: (norms k). Qed.

Fact prod_ge0 k s : 0 <= \prod_(i < k) N (i + s).
Proof. by apply: prodr_ge0 => i _; apply: N_ge0. Qed.

Fact kappaD s k : kappa (k + s) = kappa s * \prod_(i < k) N (i + s).
Proof.
elim: k => [|k IHk]; first by rewrite big_ord0 mulr1.
by rewrite addSn /kappa big_ord_recr -/(kappa (k + s)) IHk big_ord_recr mulrA.
Qed.

Fact kappa_ge0 t : 0 <= kappa t.
Proof. by apply: prodr_ge0 => i _; apply: N_ge0. Qed.

(* The norm of a product is at most the product of the norms. *)
Lemma degradation_bounds s k : bounds ((\prod_(i < k) N (i + s)) ^+ 2) (degradation s k).
Proof.
elim: k => [|k IHk] /=; first by rewrite big_ord0 expr1n; apply: bounds1.
rewrite big_ord_recr /= exprMn mulrC; apply: bounds_mul => //; first exact: sqr_ge0.
by case: (norms (k + s)).
Qed.

Lemma base_monotone s k : base s <= base (k + s).
Proof. by elim: k => // k IHk; apply: le_trans IHk (base_grows _). Qed.

(* (4) for every pair of times s < t = k + s, whatever the operators. *)
Theorem scale_matched_admissible s k :
  covariance (transition_cov (transition_op s k) (sigma s ^+ 2)%:M (sigma (k + s) ^+ 2)%:M).
Proof.
apply/isotropic_transition => v; set P := \prod_(i < k) N (i + s); set r := a (k + s) / a s.
have bound : bounds (r ^+ 2 * P ^+ 2) (transition_op s k)^T.
  by apply: bounds_tr; [rewrite mulr_ge0 ?sqr_ge0 | apply/bounds_scale/degradation_bounds].
apply: le_trans (ler_wpmul2l (sqr_ge0 _) (bound v)) _.
rewrite mulrA ler_wpmul2r ?sqnorm_ge0 // -!exprMn.
have -> : sigma s * (r * P) = a (k + s) * base s * kappa (k + s).
  rewrite /sigma /r kappaD -/P; apply: matched_deviation.
  by apply/eqP; rewrite gt_eqF.
rewrite ler_pexpn2r ?nnegrE ?mulr_ge0 ?base_ge0 ?kappa_ge0 ?(ltW (a_gt0 _)) //.
by rewrite ler_wpmul2r ?kappa_ge0 // ler_wpmul2l ?base_monotone // ltW.
Qed.

End Matched.

Section Change.
Variable R : realFieldType.
Variables (m n : nat) (A : 'M[R]_(m, n)) (N : R).
Hypothesis norm_A : opnorm N A.
(* One change of size: the ratio is ratio_s before it and factor * ratio_t after it, in units of the base. *)
Variables (a_s a_t ratio_s ratio_t : R).
Hypothesis a_s_gt0 : 0 < a_s.
Hypothesis a_t_gt0 : 0 < a_t.
Hypothesis ratio_s_gt0 : 0 < ratio_s.

(* The factor must be exact: where the base does not grow, less than the norm breaks (4). *)
Theorem scale_matched_exact factor : 0 <= factor ->
  covariance (transition_cov ((a_t / a_s) *: A) ((a_s * ratio_s) ^+ 2)%:M ((a_t * (ratio_s * factor)) ^+ 2)%:M)
  <-> N <= factor.
Proof.
move=> factor_ge0; have N_ge0 : 0 <= N by case: norm_A.
have r_ge0 : 0 <= a_t / a_s by rewrite divr_ge0 ?ltW.
rewrite (isotropic_transition_norm _ _ (opnorm_scale r_ge0 norm_A)) -exprMn.
have -> : a_s * ratio_s * (a_t / a_s * N) = a_t * ratio_s * N.
  by apply: exact_deviation; apply/eqP; rewrite gt_eqF.
rewrite mulrA ler_pexpn2r ?nnegrE ?mulr_ge0 ?(ltW a_t_gt0) ?(ltW ratio_s_gt0) //.
by rewrite ler_pmul2l // mulr_gt0.
Qed.

(* The deviation of the noise along a unit vector w, over the signal there. *)
Definition noise_to_signal k (sigma : R) (w mean : 'cV[R]_k) : R := sigma / `|dot w mean|.

(* The mode kept best, v before the change and u after it, for any clean signal x: matched noise multiplies its
   noise-to-signal ratio by the growth of the base alone, so where the base is continuous, so is the ratio ... *)
Theorem best_mode_continuous u v x : N != 0 -> top_mode N A u v ->
  noise_to_signal (a_t * (ratio_t * N)) u (a_t *: (A *m x))
  = ratio_t / ratio_s * noise_to_signal (a_s * ratio_s) v (a_s *: x).
Proof.
move=> N_neq0 [_ _ _ Atu]; have N_gt0 : 0 < N by rewrite lt_def N_neq0; case: norm_A.
rewrite /noise_to_signal !dotZr dot_mulmx Atu dotZl !normrM.
rewrite (gtr0_norm a_t_gt0) (gtr0_norm a_s_gt0) (gtr0_norm N_gt0) !invfM.
by apply: best_mode; apply/eqP; rewrite ?N_neq0 ?gt_eqF.
Qed.

(* ... while noise that is not matched multiplies it by 1 / N at once. *)
Theorem best_mode_unmatched u v x : N != 0 -> top_mode N A u v ->
  noise_to_signal (a_t * ratio_t) u (a_t *: (A *m x))
  = N^-1 * (ratio_t / ratio_s * noise_to_signal (a_s * ratio_s) v (a_s *: x)).
Proof.
move=> N_neq0 top; rewrite -(best_mode_continuous x N_neq0 top) /noise_to_signal !mulrA; congr (_ / _).
by rewrite [RHS]mulrC !mulrA mulfV // mul1r.
Qed.

End Change.
